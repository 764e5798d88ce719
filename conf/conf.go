// Package conf carries the sample files of this directory inside the binary, so that `crid config default`
// prints what is documented here. It knows nothing of what they mean.
package conf

import _ "embed" // for the files below

// TOML is crid.toml: every option with its default, commented out.
//
//go:embed crid.toml
var TOML string

// Unit is crid.service, as `make install` installs it.
//
//go:embed crid.service
var Unit string
