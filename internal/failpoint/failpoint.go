// Package failpoint lets tests stop crid between any two side effects. Every room may name such a place with Hit; the
// package knows none of them, nor what a test does with them. Without the build tag failpoint a Hit is nothing at all.
package failpoint

// Control is the environment variable that names the file with orders. The file is read anew at every Hit; one that is
// absent or empty orders nothing. It holds one of these lines:
//
//	trace FILE       append the name of each point that is hit to FILE
//	kill NAME N      end this process by SIGKILL at the N-th hit of NAME since the order was given
//	hold NAME        stay at NAME until there is another order, or none
const Control = "CRID_FAILPOINTS"
