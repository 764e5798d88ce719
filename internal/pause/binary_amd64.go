package pause

import _ "embed"

//go:embed pause.amd64
var binary string
