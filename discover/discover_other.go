//go:build !linux && !darwin && !freebsd && !netbsd && !openbsd && !windows

package discover

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
)

var errUnsupported = fmt.Errorf("discover: routes on %s: %w", runtime.GOOS, errors.ErrUnsupported)

func lookup(netip.Addr) (Gateway, error) { return Gateway{}, errUnsupported }

func defaultRoutes() ([]defaultRoute, error) { return nil, errUnsupported }

type watcher struct{}

func openWatcher() (watcher, error) { return watcher{}, errUnsupported }

func (watcher) run(context.Context, func()) error { return errUnsupported }
