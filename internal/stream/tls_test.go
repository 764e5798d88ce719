package stream

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
)

// authority signs certificates for the names of this machine.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t}
	template := certificate(name)
	template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
	a.cert, a.key = template, newKey(t)
	a.pem, _ = a.sign(template, a.key)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func certificate(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

// sign returns a certificate and the key as PEM.
func (a *authority) sign(template *x509.Certificate, key *ecdsa.PrivateKey) (cert, private []byte) {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})
}

// newPair makes a certificate of a new authority, and its key.
func newPair(t *testing.T) TLS {
	t.Helper()
	dir := t.TempDir()
	cert, key := newAuthority(t, "a").sign(certificate("server"), newKey(t))
	files := TLS{Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key")}
	write(t, files.Cert, cert)
	write(t, files.Key, key)
	return files
}

// write makes a file whole.
func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// tries tells how an exec goes for a client with those certificates.
func tries(t *testing.T, s *Server, ca, cert, key []byte) error {
	t.Helper()
	u := execURL(t, s, Want{Stdout: true})
	if u.Scheme != "https" {
		t.Errorf("%s is no TLS", u)
	}
	var stdout bytes.Buffer
	config := &rest.Config{TLSClientConfig: rest.TLSClientConfig{CAData: ca, CertData: cert, KeyData: key}}
	err := spdyStream(t.Context(), u, config, remotecommand.StreamOptions{Stdout: &stdout}, "v4.channel.k8s.io")
	if err == nil && stdout.String() != "c talk false\n" {
		t.Errorf("%q", &stdout)
	}
	return err
}

func TestTLSFilesCountAsSoonAsTheyChange(t *testing.T) {
	dir := t.TempDir()
	files := TLS{Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key"), ClientCA: filepath.Join(dir, "ca")}
	old, next, clients := newAuthority(t, "old"), newAuthority(t, "next"), newAuthority(t, "clients")
	cert, key := old.sign(certificate("server"), newKey(t))
	write(t, files.Cert, cert)
	write(t, files.Key, key)
	write(t, files.ClientCA, clients.pem)
	s, _ := serve(t, Config{TLS: files})
	mine, myKey := clients.sign(certificate("client"), newKey(t))
	if err := tries(t, s, old.pem, mine, myKey); err != nil {
		t.Error(err)
	}
	if err := tries(t, s, old.pem, nil, nil); err == nil {
		t.Error("a client without a certificate is served")
	}
	stranger, strangersKey := next.sign(certificate("client"), newKey(t))
	if err := tries(t, s, old.pem, stranger, strangersKey); err == nil {
		t.Error("a stranger is served")
	}
	cert, key = next.sign(certificate("server"), newKey(t))
	write(t, files.Cert, cert) // its key follows; meanwhile the old pair counts
	if err := tries(t, s, old.pem, mine, myKey); err != nil {
		t.Error("half replaced:", err)
	}
	write(t, files.Key, key)
	if err := tries(t, s, next.pem, mine, myKey); err != nil {
		t.Error("replaced:", err)
	}
	write(t, files.ClientCA, next.pem)
	if err := tries(t, s, next.pem, mine, myKey); err == nil {
		t.Error("the old client is served after its CA was replaced")
	}
	if err := tries(t, s, next.pem, stranger, strangersKey); err != nil {
		t.Error("the new client:", err)
	}
}

func TestTLSFilesAreReadAgainAfterAFailure(t *testing.T) {
	dir := t.TempDir()
	files := TLS{Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key"), ClientCA: filepath.Join(dir, "ca")}
	a := newAuthority(t, "a")
	cert, key := a.sign(certificate("server"), newKey(t))
	write(t, files.Cert, cert)
	write(t, files.Key, key)
	write(t, files.ClientCA, a.pem)
	var log bytes.Buffer
	k := &keys{files: files, log: slog.New(slog.NewTextHandler(&log, nil))}
	if err := k.load(); err != nil {
		t.Fatal(err)
	}
	current := func() *tls.Config {
		t.Helper()
		config, err := k.current(nil)
		if err != nil {
			t.Fatal(err)
		}
		return config
	}
	before := current()
	if err := os.Rename(files.Key, files.Key+".away"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if current() != before {
			t.Error("files that are missing count")
		}
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings: %s", n, &log)
	}
	if err := os.Rename(files.Key+".away", files.Key); err != nil {
		t.Fatal(err)
	}
	now := current()
	if now == before || current() != now {
		t.Error("the files do not count, or are read again and again")
	}
}

func TestTLSFilesAreTriedAgainUnchanged(t *testing.T) {
	files := newPair(t)
	k := &keys{files: files, log: slog.New(slog.DiscardHandler)}
	if err := k.load(); err != nil {
		t.Fatal(err)
	}
	before := k.config
	again, err := os.ReadFile(files.Key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, files.Key, again)
	var limit unix.Rlimit // no descriptor is free: the files are as they are, and cannot be read
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := unix.Rlimit{Cur: 0, Max: limit.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	during, err := k.current(nil)
	if err := errors.Join(err, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)); err != nil {
		t.Fatal(err)
	}
	if after, err := k.current(nil); err != nil || during != before || after == before {
		t.Errorf("%v; what could not be read counts: %v; what can be does: %v", err, during != before, after != before)
	}
}

func TestTLSThatCannotWork(t *testing.T) {
	dir := t.TempDir()
	a := newAuthority(t, "a")
	cert, key := a.sign(certificate("server"), newKey(t))
	files := TLS{Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key"), ClientCA: filepath.Join(dir, "ca")}
	for _, missing := range []string{files.Cert, files.Key, files.ClientCA} {
		write(t, files.Cert, cert)
		write(t, files.Key, key)
		write(t, files.ClientCA, a.pem)
		write(t, missing, []byte("nonsense"))
		if _, err := Open(t.Context(), Config{Address: "127.0.0.1", TLS: files}, Deps{}); err == nil || !strings.Contains(err.Error(), missing) {
			t.Errorf("%s: %v", missing, err)
		}
	}
}

func TestHTTP2IsNotOffered(t *testing.T) {
	files := newPair(t)
	s, _ := serve(t, Config{TLS: files})
	c, err := tls.Dial("tcp", execURL(t, s, Want{Stdout: true}).Host, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if p := c.ConnectionState().NegotiatedProtocol; p != "http/1.1" {
		t.Errorf("negotiated %q", p)
	}
}
