//go:build failpoint

package failpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// orders is what the control file said last.
type orders struct {
	mu   sync.Mutex // guards all below; held while the files are read and written
	text string
	hits int // of the point that an order to kill names, since that was given
}

var now orders

// holdPause is how often a point that is held looks for another order.
const holdPause = 10 * time.Millisecond

// Hit obeys the control file.
func Hit(name string) {
	for now.obey(name) {
		<-time.After(holdPause)
	}
}

// obey tells whether the point is held.
func (o *orders) obey(name string) (held bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	text := read(os.Getenv(Control))
	if text != o.text {
		o.text, o.hits = text, 0
	}
	order := strings.Fields(text)
	switch {
	case len(order) == 0:
	case order[0] == "trace" && len(order) == 2:
		trace(order[1], name)
	case order[0] == "hold" && len(order) == 2:
		return order[1] == name
	case order[0] == "kill" && len(order) == 3:
		if order[1] != name {
			break
		}
		if o.hits++; strconv.Itoa(o.hits) == order[2] {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // never fails
			select {}
		}
	default:
		panic(fmt.Sprintf("fail points: order %q is none", text))
	}
	return false
}

func read(file string) string {
	if file == "" {
		return ""
	}
	raw, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		panic(fmt.Sprintf("fail points: %v", err))
	}
	return strings.TrimSpace(string(raw))
}

func trace(file, name string) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err == nil {
		_, err = f.WriteString(name + "\n")
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		panic(fmt.Sprintf("fail points: %v", err))
	}
}
