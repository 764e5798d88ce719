package server

import "strings"

// matches tells whether labels has every pair of the selector; an empty selector takes all.
func matches(labels, selector map[string]string) bool {
	for key, want := range selector {
		if got, ok := labels[key]; !ok || got != want {
			return false
		}
	}
	return true
}

// named tells whether id begins with prefix, as ids may be shortened; an empty prefix takes all.
func named(id, prefix string) bool { return strings.HasPrefix(id, prefix) }
