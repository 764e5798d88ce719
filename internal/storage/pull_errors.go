package storage

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"reflect"
	"slices"
	"syscall"

	"github.com/docker/distribution/registry/api/errcode"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/signature"
	cstorage "go.podman.io/storage"

	"github.com/crid/crid/internal/errdef"
)

// pullError says what became of the pull of ref, and what an operator can do about it. The kubelet reads the
// first word of RegistryUnavailable and SignatureInvalid, so these come first.
func pullError(ctx context.Context, ref string, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("pull image %s: %w", ref, context.Cause(ctx))
	case isSignature(err):
		return fmt.Errorf("%w: pull image %s: %w", errdef.SignatureInvalid, ref, err)
	case errors.Is(errdef.Told(err), errdef.Exhausted): // layers are unpacked by another process
		return fmt.Errorf("pull image %s: %w", ref, errdef.Told(err))
	case isLost(err):
		return fmt.Errorf("pull image %s: it or a layer of it was removed while it was pulled (pull it again): %w: %w", ref, errdef.Unavailable, err)
	case isCertificate(err):
		return fmt.Errorf("pull image %s: the registry's certificate is not trusted (its CA belongs into /etc/containers/certs.d/HOST/ca.crt, or mark it insecure in registries.conf): %w", ref, err)
	case isPlainHTTP(err):
		return fmt.Errorf("pull image %s: the registry speaks plain HTTP (mark it insecure in registries.conf): %w", ref, err)
	}
	switch status := statusOf(err); {
	case status == http.StatusTooManyRequests || status >= 500:
		return fmt.Errorf("%w: pull image %s: %w", errdef.RegistryUnavailable, ref, err)
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return fmt.Errorf("pull image %s: the registry denies access, or has no such image and does not say so (look at the name and at the pull secrets): %w", ref, err)
	case status == http.StatusNotFound:
		return fmt.Errorf("pull image %s: the registry has no such image (look at its name, tag or digest): %w: %w", ref, errdef.NotFound, err)
	case isConnection(err):
		return fmt.Errorf("%w: pull image %s: %w", errdef.RegistryUnavailable, ref, err)
	}
	return fmt.Errorf("pull image %s: %w", ref, err)
}

func isSignature(err error) bool {
	_, rejected := errors.AsType[signature.PolicyRequirementError](err)
	_, invalid := errors.AsType[signature.InvalidSignatureError](err)
	return rejected || invalid
}

// isLost tells whether the store misses what the pull had put there or found there.
func isLost(err error) bool {
	return slices.ContainsFunc([]error{
		cstorage.ErrImageUnknown, cstorage.ErrNotAnImage, cstorage.ErrLayerUnknown, cstorage.ErrNotALayer, cstorage.ErrParentUnknown,
	}, func(lost error) bool { return errors.Is(err, lost) })
}

func isCertificate(err error) bool {
	_, unverified := errors.AsType[*tls.CertificateVerificationError](err)
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	return unverified || unknown
}

func isPlainHTTP(err error) bool {
	_, noTLS := errors.AsType[tls.RecordHeaderError](err)
	return noTLS || errors.Is(err, http.ErrSchemeMismatch)
}

// isConnection tells whether the registry could not be reached, or was lost on the way. A system's error says where it is from only by
// what it is wrapped in: by itself it could be the disk's, and counts as that. What the disk failed with goes first, since it ends
// the downloads beside.
func isConnection(err error) bool {
	network, disk := whence(err)
	return network && !disk
}

// whence looks through err and what it wraps.
func whence(err error) (network, disk bool) {
	switch e := err.(type) {
	case *net.OpError, *net.DNSError, silence:
		return true, false
	case *fs.PathError, *os.LinkError, *os.SyscallError, syscall.Errno, unpackError:
		return false, true
	case net.Error: // a request's, which wraps more
		network = true
	default:
		network = e == io.ErrUnexpectedEOF
	}
	var wrapped []error
	switch w := err.(type) {
	case interface{ Unwrap() error }:
		wrapped = []error{w.Unwrap()}
	case interface{ Unwrap() []error }:
		wrapped = w.Unwrap()
	}
	for _, e := range wrapped {
		n, d := whence(e)
		network, disk = network || n, disk || d
	}
	return network, disk
}

// statusOf returns the HTTP status that the registry refused with; 0 when it was something else.
func statusOf(err error) int {
	if errors.Is(err, docker.ErrTooManyRequests) {
		return http.StatusTooManyRequests
	}
	if _, ok := errors.AsType[docker.ErrUnauthorizedForCredentials](err); ok {
		return http.StatusUnauthorized
	}
	if e, ok := errors.AsType[errcode.Error](err); ok {
		if e.Code == errcode.ErrorCodeUnknown {
			return 0 // a code of the registry's own; the library forgets the status
		}
		return e.Code.Descriptor().HTTPStatusCode
	}
	if code, ok := errors.AsType[errcode.ErrorCode](err); ok && code != errcode.ErrorCodeUnknown { // an answer without a message
		return code.Descriptor().HTTPStatusCode
	}
	return statusField(err)
}

// statusField looks for a field StatusCode in err and what it wraps: the library does not export the type of
// the error for an answer that is no registry's, such as a proxy's page.
func statusField(err error) int {
	v := reflect.ValueOf(err)
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() == reflect.Struct {
		if f := v.FieldByName("StatusCode"); f.IsValid() && f.CanInt() {
			return int(f.Int())
		}
	}
	switch w := err.(type) {
	case interface{ Unwrap() error }:
		return statusField(w.Unwrap())
	case interface{ Unwrap() []error }:
		for _, e := range w.Unwrap() {
			if status := statusField(e); status != 0 {
				return status
			}
		}
	}
	return 0
}
