//go:build !failpoint

package failpoint

// Hit marks the place between two side effects. name is a literal, "room/verb/what-was-done", that no other place has.
func Hit(name string) {}
