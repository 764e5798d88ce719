package systemd

import (
	"slices"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/isolate"
)

// tap hears every call to systemd that goes over the system bus.
type tap struct {
	heard chan *dbus.Message
	own   *dbus.Conn // to ask by
}

// listen taps the bus until t ends.
func listen(t *testing.T) tap {
	t.Helper()
	connect := func() *dbus.Conn {
		conn, err := dbus.ConnectSystemBus()
		if err != nil {
			t.Fatal("connect to the system bus:", err)
		}
		t.Cleanup(func() {
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
		})
		return conn
	}
	ear, b := connect(), tap{make(chan *dbus.Message, 1000), connect()}
	rules := []string{"type='method_call',destination='org.freedesktop.systemd1'"}
	if err := ear.BusObject().Call("org.freedesktop.DBus.Monitoring.BecomeMonitor", 0, rules, uint32(0)).Err; err != nil {
		t.Fatal("become a monitor of the bus:", err)
	}
	ear.Eavesdrop(b.heard)
	return b
}

// of returns what a process calls until now. What it called is heard before a call that is made later.
func (b tap) of(t *testing.T, pid int) []string {
	t.Helper()
	names := b.names(t, pid)
	systemd := b.own.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
	if err := systemd.Call("org.freedesktop.DBus.Peer.Ping", 0).Err; err != nil {
		t.Fatal(err)
	}
	limit := time.After(isolate.Patient(time.Minute))
	var calls []string
	for {
		select {
		case m := <-b.heard:
			var sender, member string
			if err := dbus.Store([]any{m.Headers[dbus.FieldSender].Value(), m.Headers[dbus.FieldMember].Value()}, &sender, &member); err != nil {
				t.Fatal(err)
			}
			if sender == b.own.Names()[0] {
				return calls
			}
			if slices.Contains(names, sender) {
				calls = append(calls, member)
			}
		case <-limit:
			t.Fatal("nothing is heard of a call that was made")
		}
	}
}

// names are those that a process has on the bus.
func (b tap) names(t *testing.T, pid int) (found []string) {
	t.Helper()
	var all []string
	if err := b.own.BusObject().Call("org.freedesktop.DBus.ListNames", 0).Store(&all); err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		var owner uint32
		err := b.own.BusObject().Call("org.freedesktop.DBus.GetConnectionUnixProcessID", 0, name).Store(&owner)
		if err == nil && int(owner) == pid { // others leave meanwhile
			found = append(found, name)
		}
	}
	return found
}

// The monitor's scope is the one thing that crid asks systemd for when a container starts; the runtime asks for the container's.
func testCalls(t *testing.T, c *harness.Crid) {
	name, _ := podSlice("calls")
	pod := c.RunPod(in(name))
	pod.Run("sleep 1000") // the first of the pod; and crid is on the bus then
	bus := listen(t)
	for range 2 {
		pod.Run("sleep 1000")
		if calls := bus.of(t, c.PID()); !slices.Equal(calls, []string{"StartTransientUnit"}) {
			t.Errorf("to start a container, crid calls %q", calls)
		}
	}
}
