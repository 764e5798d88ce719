package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/crid/crid/internal/admin"
)

// bars show how far the layers of a pull are: on a terminal a bar for each, drawn anew as things change; elsewhere a line for
// each layer that is done.
type bars struct {
	out   io.Writer
	rows  int // of the terminal; 0 = it is none
	quiet bool
	drawn int          // lines that are to be drawn over
	said  map[int]bool // layers that have had their line, without a terminal
}

func newBars(out io.Writer, quiet bool) *bars {
	b := &bars{out: out, quiet: quiet, said: map[int]bool{}}
	if file, ok := out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		_, rows, err := term.GetSize(int(file.Fd()))
		if b.rows = rows; err != nil || rows < 3 {
			b.rows = 24
		}
	}
	return b
}

// draw shows the layers as they are now. What cannot be shown is no reason to end a pull.
func (b *bars) draw(layers []*admin.LayerProgress) {
	if b.quiet || len(layers) == 0 {
		return
	}
	if b.rows == 0 {
		for i, l := range layers {
			if !b.said[i] && isDone(l) {
				b.said[i] = true
				fmt.Fprintf(b.out, "layer %d of %d  %s  %s  %s\n", i+1, len(layers), digestOf(l), amountOf(l), plain(l.GetState()))
			}
		}
		return
	}
	var text strings.Builder
	if b.drawn > 0 {
		fmt.Fprintf(&text, "\x1b[%dA\x1b[J", b.drawn)
	}
	done, shown := 0, 0
	for _, l := range layers {
		if isDone(l) {
			done++
		}
		if shown < b.rows-2 && (len(layers) < b.rows-1 || l.GetState() == "pulling") {
			shown++
			fmt.Fprintf(&text, "%s %s %s %s\n", digestOf(l), bar(l), amountOf(l), plain(l.GetState()))
		}
	}
	fmt.Fprintf(&text, "%d of %d layers\n", done, len(layers))
	b.drawn = shown + 1
	_, _ = io.WriteString(b.out, text.String())
}

func isDone(l *admin.LayerProgress) bool { return l.GetState() == "stored" || l.GetState() == "reused" }

func digestOf(l *admin.LayerProgress) string {
	_, hex, _ := strings.Cut(l.GetDigest(), ":")
	return short(hex)
}

// barWidth is the length of a full bar, in characters.
const barWidth = 30

func bar(l *admin.LayerProgress) string {
	full := 0
	switch {
	case isDone(l) || l.GetState() == "pulled":
		full = barWidth
	case l.GetTotal() > 0:
		full = int(min(max(l.GetDone(), 0), l.GetTotal()) * barWidth / l.GetTotal())
	}
	return "[" + strings.Repeat("=", full) + strings.Repeat(" ", barWidth-full) + "]"
}

func amountOf(l *admin.LayerProgress) string {
	switch {
	case l.GetTotal() < 0:
		return bytesOf(uint64(max(l.GetDone(), 0)))
	case isDone(l):
		return bytesOf(uint64(l.GetTotal()))
	}
	return bytesOf(uint64(max(l.GetDone(), 0))) + " of " + bytesOf(uint64(l.GetTotal()))
}
