package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/crid/crid/internal/fsck"
)

// FuzzAdmin reads any bytes as what comes to the admin socket: nothing is looked for, and above all nothing repaired, unless
// it is a request that says so.
func FuzzAdmin(f *testing.F) {
	post := func(body string) []byte {
		return fmt.Appendf(nil, "POST /fsck HTTP/1.1\r\nHost: crid\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
	for _, body := range []string{`{"repair":true}`, `{"repair":true,"contents":false}`, `{}`, `null`, ``, `[]`, `{"repair":"yes"}`, `{"REPAIR":true}`,
		`{"repair":true} {"repair":false}`, `{"else":1}`, `{"contents":` + string(bytes.Repeat([]byte(" "), 2000)) + `true}`} {
		f.Add(post(body))
	}
	f.Add([]byte("GET /fsck HTTP/1.1\r\nHost: crid\r\n\r\n"))
	f.Add([]byte("POST /../fsck HTTP/1.1\r\nHost: crid\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"))
	f.Add([]byte("POST http://other/fsck?x HTTP/1.0\r\n\r\n{}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return
		}
		asked, failed := []fsckRequest{}, error(nil)
		if len(raw)%2 == 0 {
			failed = errors.New("no disk")
		}
		handler := adminHandler(func(_ context.Context, ask fsckRequest) (fsckReport, error) {
			asked = append(asked, ask)
			return fsckReport{Findings: []fsck.Finding{{Why: string(raw)}}}, failed
		})
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, req.WithContext(t.Context()))
		if len(asked) > 1 || len(asked) == 1 && (req.Method != http.MethodPost || req.URL.Path != "/fsck") {
			t.Errorf("%q asks %v", raw, asked)
		}
		if len(asked) == 1 && asked[0].Repair && !bytes.Contains(bytes.ToLower(raw), []byte("repair")) {
			t.Errorf("%q repairs", raw)
		}
		if ok := answer.Code == http.StatusOK; ok != (len(asked) == 1 && failed == nil) {
			t.Errorf("%q is answered by %d, and asked %v", raw, answer.Code, asked)
		}
	})
}
