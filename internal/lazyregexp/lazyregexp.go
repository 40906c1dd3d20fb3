// Package lazyregexp compiles regular expressions when they are used. Most runs of a program need
// few of them, and start sooner.
package lazyregexp

import (
	"regexp"
	"sync"
)

// New returns a function that compiles the expression in its first call. It panics in that call
// if the expression is invalid, so an expression must be a constant that a test uses.
func New(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}
