package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/crid/crid/internal/admin"
)

// bars show how far the layers of a pull, a load or a save are: on a terminal a bar for each, drawn anew as things change;
// elsewhere a line for each layer that is done. The terminal's modes stay as they are: whoever is interrupted has nothing to undo.
type bars struct {
	out   io.Writer
	size  func() (columns, rows int) // of the terminal, which may change; nil = it is none
	quiet bool
	drawn []int             // lengths of the lines that are to be drawn over
	said  map[int]bool      // layers that have had their line, without a terminal
	words map[string]string // in place of states
	image string            // whose layers are shown
	sent  time.Time         // when it was last drawn how much of an archive is sent
}

func newBars(out io.Writer, quiet bool) *bars {
	b := &bars{out: out, quiet: quiet, said: map[int]bool{}}
	if file, ok := out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		b.size = func() (int, int) { return windowOf(file) }
	}
	return b
}

// windowOf is how large the terminal is, or an old one where it does not say.
func windowOf(file *os.File) (columns, rows int) {
	columns, rows, err := term.GetSize(int(file.Fd()))
	if err != nil || columns < 1 || rows < 1 {
		return 80, 24
	}
	return columns, rows
}

// draw shows the layers as they are now. What cannot be shown is no reason to end a pull.
func (b *bars) draw(p *admin.Progress) {
	layers := p.GetLayers()
	if b.quiet || len(layers) == 0 {
		return
	}
	if image := p.GetImage(); image != b.image {
		b.image, b.drawn, b.said = image, nil, map[int]bool{}
		fmt.Fprintf(b.out, "%s\n", plain(image))
	}
	if b.size == nil {
		for i, l := range layers {
			if !b.said[i] && isDone(l) {
				b.said[i] = true
				fmt.Fprintf(b.out, "layer %d of %d  %s  %s  %s\n", i+1, len(layers), digestOf(l), amountOf(l), b.stateOf(l))
			}
		}
		return
	}
	_, rows := b.size()
	var lines []string
	done, moving := 0, rows-1 <= len(layers) // there is room for those alone that move
	for _, l := range layers {
		if isDone(l) {
			done++
		}
		if len(lines) < rows-2 && (!moving || isMoving(l)) {
			lines = append(lines, fmt.Sprintf("%s %s %s %s", digestOf(l), bar(l), amountOf(l), b.stateOf(l)))
		}
	}
	b.paint(append(lines, fmt.Sprintf("%d of %d layers", done, len(layers))))
}

// sending shows how much of an archive is sent. Without a terminal there is nothing to be said of it.
func (b *bars) sending(done, total int64) {
	ended := done == total
	if b.quiet || b.size == nil || !ended && time.Since(b.sent) < drawPeriod {
		return
	}
	b.sent = time.Now()
	l := &admin.LayerProgress{Done: done, Total: total}
	b.paint([]string{fmt.Sprintf("%-13s %s %s sent", "archive", bar(l), amountOf(l))})
}

// drawPeriod is how often it is drawn how much is sent; of layers crid tells as often.
const drawPeriod = 100 * time.Millisecond

// paint draws lines over those that were drawn before. A line that is longer than the window is wide would take two, of which the
// next drawing goes over one: it is cut. Lines of before may take more than one when the window became narrower.
func (b *bars) paint(lines []string) {
	columns, _ := b.size()
	above := 0
	for _, length := range b.drawn {
		above += max(1, (length+columns-1)/columns)
	}
	var text strings.Builder
	if above > 0 {
		fmt.Fprintf(&text, "\x1b[%dA\r\x1b[J", above)
	}
	b.drawn = b.drawn[:0]
	for _, line := range lines {
		if runes := []rune(line); len(runes) >= columns { // the last column stays free: there terminals differ
			line = string(runes[:columns-1])
		}
		b.drawn = append(b.drawn, utf8.RuneCountInString(line))
		text.WriteString(line + "\n")
	}
	_, _ = io.WriteString(b.out, text.String())
}

// stateOf is the layer's state in words of the command.
func (b *bars) stateOf(l *admin.LayerProgress) string {
	if word, ok := b.words[l.GetState()]; ok {
		return word
	}
	return plain(l.GetState())
}

func isDone(l *admin.LayerProgress) bool {
	return l.GetState() == "stored" || l.GetState() == "reused" || l.GetState() == "saved"
}

func isMoving(l *admin.LayerProgress) bool {
	return l.GetState() == "pulling" || l.GetState() == "saving"
}

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
