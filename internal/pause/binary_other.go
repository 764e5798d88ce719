//go:build !amd64 && !arm64

package pause

const binary = ""
