package integration

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
)

// screen keeps what is written to it, for a test that waits for something to appear.
type screen struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func (s *screen) await(t *testing.T, words string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%q on the screen", words), func() bool { return strings.Contains(s.String(), words) })
}

// stream connects a client to the URL that an RPC answered with, by SPDY as the kubelet does, until ctx ends.
func stream(ctx context.Context, t *testing.T, address string, o remotecommand.StreamOptions) error {
	t.Helper()
	return streamTLS(ctx, t, address, rest.TLSClientConfig{}, o)
}

func streamTLS(ctx context.Context, t *testing.T, address string, with rest.TLSClientConfig, o remotecommand.StreamOptions) error {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	e, err := remotecommand.NewSPDYExecutor(&rest.Config{TLSClientConfig: with}, "POST", u)
	if err != nil {
		t.Fatal(err)
	}
	return e.StreamWithContext(ctx, o)
}

// execURL asks for a shell command in a container, with the streams that o has.
func execURL(t *testing.T, c *harness.Crid, ctr *harness.Container, o remotecommand.StreamOptions, shell string) string {
	t.Helper()
	resp, err := c.Runtime.Exec(c.Context(), &runtime.ExecRequest{
		ContainerId: ctr.ID, Cmd: []string{"sh", "-c", shell}, Tty: o.Tty, Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil,
	})
	if err != nil {
		t.Fatal("exec:", err)
	}
	return resp.Url
}

// client is somebody at a keyboard.
type client struct {
	t        *testing.T
	screen   *screen
	keyboard *io.PipeWriter
	hangUp   context.CancelFunc
	ended    chan error
}

func connect(t *testing.T, address string, tty bool, sizes remotecommand.TerminalSizeQueue) *client {
	t.Helper()
	ctx, hangUp := context.WithCancel(t.Context())
	in, keyboard := io.Pipe()
	k := &client{t: t, screen: &screen{}, keyboard: keyboard, hangUp: hangUp, ended: make(chan error, 1)}
	go func() { // ends with the stream
		k.ended <- stream(ctx, t, address, remotecommand.StreamOptions{Stdin: in, Stdout: k.screen, Tty: tty, TerminalSizeQueue: sizes})
		in.Close()
	}()
	return k
}

func (k *client) types(text string) {
	k.t.Helper()
	if _, err := io.WriteString(k.keyboard, text); err != nil {
		k.t.Fatal(err)
	}
}

func (k *client) wait() error {
	k.t.Helper()
	select {
	case err := <-k.ended:
		return err
	case <-time.After(20 * time.Second):
		k.t.Fatalf("the stream has not ended: %q", k.screen)
		return nil
	}
}

func attachURL(t *testing.T, c *harness.Crid, ctr *harness.Container, tty bool) string {
	t.Helper()
	resp, err := c.Runtime.Attach(c.Context(), &runtime.AttachRequest{ContainerId: ctr.ID, Stdin: true, Stdout: true, Tty: tty})
	if err != nil {
		t.Fatal("attach:", err)
	}
	return resp.Url
}

func dialWS(t *testing.T, address string) *websocket.Conn {
	t.Helper()
	config, err := websocket.NewConfig("ws"+strings.TrimPrefix(address, "http"), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"v4.channel.k8s.io"}
	ws, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	ws.PayloadType = websocket.BinaryFrame
	if err := ws.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return ws
}

// hearWS reads from a WebSocket until one of its channels has said words.
func hearWS(t *testing.T, ws *websocket.Conn, channel byte, words string) {
	t.Helper()
	heard := map[byte]string{}
	for !strings.Contains(heard[channel], words) {
		var frame []byte
		if err := websocket.Message.Receive(ws, &frame); err != nil {
			t.Fatalf("%v: %q", err, heard)
		}
		heard[frame[0]] += string(frame[1:])
	}
}

// selfSigned makes a certificate for 127.0.0.1, and its key, as PEM.
func selfSigned(t *testing.T) (cert, key []byte) {
	t.Helper()
	pair, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, pair.Public(), pair)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(pair)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})
}
