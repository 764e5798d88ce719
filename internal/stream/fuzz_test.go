package stream

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path"
	"strings"
	"testing"
	"time"
)

// FuzzConnection sends any bytes to the server as a client, with a URL that counts in the place of URL: whatever they
// are, the connection ends with its client, and the next one is served.
func FuzzConnection(f *testing.F) {
	upgrade := func(headers string) string { return "GET URL HTTP/1.1\r\nHost: x\r\n" + headers + "\r\n" }
	ws := upgrade("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n")
	for _, s := range []string{
		"", "GET / HTTP/1.1\r\n\r\n", "POST URL HTTP/1.0\r\n\r\n", upgrade(""), "GET /exec/../URL HTTP/1.1\r\nHost: \x00\r\n\r\n",
		upgrade("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n") + "\x80\x03\x00\x01\x00\x00\x00\x0a\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00",
		ws + "\x82\x86\x00\x00\x00\x00\x00hello", ws + "\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00",
		ws + "\x82\x99\x00\x00\x00\x00\x04{\"Width\":-1,\"Height\":9e9}", ws + "\x82\x83\x00\x00\x00\x00\xff\x00\x07",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	fakes := newFakes()
	fakes.one = make(chan struct{}, 1<<20)
	s, err := Open(f.Context(), Config{Address: "127.0.0.1", IdleTimeout: time.Minute}, Deps{Containers: fakes, Pods: fakes, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(s.End)
	f.Fuzz(func(t *testing.T, raw []byte, exec bool) {
		want := Want{Stdin: true, Stdout: true, TTY: true}
		issue := func() (string, error) { return s.AttachURL(Attach{Container: "c", Want: want}) }
		if exec {
			issue = func() (string, error) { return s.ExecURL(Exec{Container: "c", Cmd: []string{"talk"}, Want: want}) }
		}
		url, err := issue()
		if err != nil {
			t.Fatal(err)
		}
		defer s.tickets.redeem(path.Base(url)) // if nobody did: there are so many at a time only
		conn, err := net.Dial("tcp", s.base.Host)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(bytes.ReplaceAll(raw, []byte("URL"), []byte(strings.TrimPrefix(url, s.base.String())))) // it may hang up
		_ = conn.(*net.TCPConn).CloseWrite()
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(conn, 1<<20)) // what it says is for clients that speak its language
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		resp, err := http.Get(s.base.String())
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusNotFound {
			t.Errorf("the next client gets %s, %v", resp.Status, err)
		}
	})
}
