package server

import (
	"context"
	"errors"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/event"
	"github.com/crid/crid/internal/step"
)

// kinds maps each kind of failure to its gRPC code; the first that matches counts.
var kinds = []struct {
	kind error
	code codes.Code
}{
	{errdef.NotFound, codes.NotFound},
	{errdef.Exists, codes.AlreadyExists},
	{errdef.Invalid, codes.InvalidArgument},
	{errdef.WrongState, codes.FailedPrecondition},
	{errdef.Unavailable, codes.Unavailable},
	{errdef.Unsupported, codes.Unimplemented},
	{errdef.Exhausted, codes.ResourceExhausted},
	{syscall.ENOSPC, codes.ResourceExhausted}, // wherever it comes up
	{syscall.EDQUOT, codes.ResourceExhausted},
	{event.ErrLagged, codes.Aborted},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
}

// prefixed are the kinds that the kubelet knows by the beginning of the message. Their code is Unknown, but for requests
// that are wrong in themselves.
var prefixed = []error{errdef.RegistryUnavailable, errdef.SignatureInvalid, errdef.ImageVolume, errdef.RecursiveReadOnly}

// toStatus turns an error of a room into what the client gets. One that has a gRPC status keeps it.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	for _, kind := range prefixed {
		if errors.Is(err, kind) {
			rest := strings.Replace(err.Error(), kind.Error()+": ", "", 1) // wherever it is
			code := codes.Unknown
			if errors.Is(err, errdef.Invalid) {
				code = codes.InvalidArgument
			}
			return status.Error(code, readable(kind.Error()+": "+strings.TrimSuffix(rest, ": "+kind.Error())))
		}
	}
	for _, k := range kinds {
		if errors.Is(err, k.kind) {
			return status.Error(k.code, readable(err.Error()))
		}
	}
	return status.Error(codes.Unknown, readable(err.Error()))
}

// outcome tells who watches calls how one ended.
func outcome(err error) step.Outcome { return step.Outcome{Code: status.Code(err).String(), Err: err} }

// maxMessage is how much of an error a client gets, in bytes: it ends up in events and logs, and registries and
// programs of others have their say in it.
const maxMessage = 16 << 10

// readable cuts the middle out of a message that is too long, and what is no text.
func readable(message string) string {
	if len(message) > maxMessage {
		message = message[:maxMessage/2] + " [...] " + message[len(message)-maxMessage/2:]
	}
	return strings.ToValidUTF8(message, "\uFFFD")
}

// internal is what a client gets for a panic; the log has the rest.
func internal(method string) error {
	return status.Errorf(codes.Internal, "%s: crid has a fault, its log says where", method)
}

// errDraining is what a stream gets when crid stops.
var errDraining = status.Error(codes.Unavailable, "crid is stopping")

// isUnimplemented tells a call that crid does not have.
func isUnimplemented(err error) bool { return status.Code(err) == codes.Unimplemented }

// Told is an error that a crid has answered with, as its client tells of it: without what gRPC puts around it, and of the kind that
// its code stands for.
func Told(err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, k := range kinds {
		if k.code == st.Code() {
			return told{st.Message(), k.kind}
		}
	}
	return errors.New(st.Message())
}

// told is an error of a kind whose text says it already.
type told struct {
	text string
	kind error
}

func (e told) Error() string { return e.text }
func (e told) Unwrap() error { return e.kind }
