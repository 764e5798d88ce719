// Package errdef names the kinds of failure that crid tells apart. It knows nothing of gRPC,
// of who failed, or of what a client does about it.
//
// An error carries at most one kind, wrapped into a sentence that says which object it is about:
//
//	fmt.Errorf("pod %s: %w", id, errdef.NotFound)
package errdef

import "errors"

// The kinds. Callers test for them with errors.Is; only server/errors.go turns them into gRPC codes.
var (
	NotFound    = errors.New("not found")
	Exists      = errors.New("already exists")
	Invalid     = errors.New("invalid argument")
	WrongState  = errors.New("wrong state") // the object is not in a state that allows the call
	Unavailable = errors.New("unavailable") // a plugin, disk or runtime is not ready: try again
	Unsupported = errors.New("not supported")
	Exhausted   = errors.New("resource exhausted") // disk, memory, inodes, ids
)

// The kinds whose text the kubelet reads: k8s.io/cri-api/pkg/errors names them as prefixes of a message
// that arrives with the gRPC code Unknown; beside Invalid, with InvalidArgument.
var (
	RegistryUnavailable = errors.New("RegistryUnavailable")
	SignatureInvalid    = errors.New("SignatureValidationFailed")
	ImageVolume         = errors.New("ImageVolumeMountFailed")
	RecursiveReadOnly   = errors.New("RROUnsupported")
)
