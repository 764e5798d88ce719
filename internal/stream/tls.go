package stream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

// TLS names the files that the server proves itself by, and knows its clients by. All empty: no TLS.
type TLS struct {
	Cert, Key string // PEM; both or neither
	ClientCA  string // PEM; empty = any client that has a URL
}

func (t TLS) scheme() string {
	if t.Cert == "" {
		return "http"
	}
	return "https"
}

// listener returns what puts TLS on a listener, if there is to be any. The files are read now, and again for the
// next client after they have changed.
func (t TLS) listener(log *slog.Logger) (func(net.Listener) net.Listener, error) {
	if t.Cert == "" {
		return func(l net.Listener) net.Listener { return l }, nil
	}
	k := &keys{files: t, log: log}
	if err := k.load(); err != nil {
		return nil, err
	}
	return func(l net.Listener) net.Listener {
		return tls.NewListener(l, &tls.Config{GetConfigForClient: k.current, MinVersion: tls.VersionTLS12})
	}, nil
}

// keys holds what the files said when they were read last with success.
type keys struct {
	files TLS
	log   *slog.Logger

	mu     sync.Mutex  // guards the rest; files are read under it, which are small and local
	seen   [3]stamp    // when config was read
	config *tls.Config // never edited
	failed string      // why the files could not be used last, which was logged; empty = they could
}

// stamp changes when a file does.
type stamp struct {
	inode    uint64
	size     int64
	modified unix.Timespec
	changed  unix.Timespec
}

// current returns the configuration for a client. Files that cannot be used, such as a certificate whose key has not
// been replaced yet, leave the one before in force.
func (k *keys) current(*tls.ClientHelloInfo) (*tls.Config, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stamps() == k.seen {
		return k.config, nil
	}
	failed := ""
	if err := k.load(); err != nil { // the next client tries again: the reason may pass without a change of the files
		failed = err.Error()
		if failed != k.failed {
			k.log.Warn("the new TLS files for streams cannot be used, the old ones count", "err", err)
		}
	}
	k.failed = failed
	return k.config, nil
}

// load reads the files. The stamps come first: what changes meanwhile is read again.
func (k *keys) load() error {
	now := k.stamps()
	pair, err := tls.LoadX509KeyPair(k.files.Cert, k.files.Key)
	if err != nil {
		return fmt.Errorf("read certificate %s with key %s: %w", k.files.Cert, k.files.Key, err)
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"http/1.1"}, // HTTP/2 cannot be upgraded to SPDY
	}
	if k.files.ClientCA != "" {
		pem, err := os.ReadFile(k.files.ClientCA)
		if err != nil {
			return fmt.Errorf("read client CA: %w", err)
		}
		config.ClientCAs, config.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		if !config.ClientCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("read client CA %s: it holds no certificate: %w", k.files.ClientCA, errdef.Invalid)
		}
	}
	k.seen, k.config = now, config
	return nil
}

// stamps of files that are not there are zero.
func (k *keys) stamps() [3]stamp {
	var now [3]stamp
	for i, path := range []string{k.files.Cert, k.files.Key, k.files.ClientCA} {
		var st unix.Stat_t
		if path == "" || errors.Join(unix.Stat(path, &st)) != nil {
			continue
		}
		now[i] = stamp{inode: st.Ino, size: st.Size, modified: st.Mtim, changed: st.Ctim}
	}
	return now
}
