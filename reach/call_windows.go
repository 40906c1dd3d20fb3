package reach

import (
	"errors"
	"fmt"

	"golang.org/x/sys/windows"
)

// call calls a function that returns an error code. If the system lacks the function, call
// fails; LazyProc.Call would panic. Because of the directive, the memory that the arguments
// point to does not move.
//
//go:uintptrescapes
func call(p *windows.LazyProc, args ...uintptr) error {
	if err := p.Find(); err != nil {
		return fmt.Errorf("missing function: %w: %w", errors.ErrUnsupported, err)
	}
	if code, _, _ := p.Call(args...); code != 0 {
		return fmt.Errorf("%s: %w", p.Name, windows.Errno(code))
	}
	return nil
}
