package discover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A watcher is a socket that has joined the groups which report changes. Policy
// rules and next hop objects change a lookup's answer as much as routes do.
type watcher struct{ conn *netlink.Conn }

var watchGroups = []int{
	unix.RTNLGRP_LINK,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE,
	unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE,
	unix.RTNLGRP_NEXTHOP,
}

func openWatcher() (*watcher, error) {
	var mask uint32
	for _, g := range watchGroups {
		mask |= 1 << (g - 1)
	}
	c, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: mask})
	if err != nil {
		return nil, fmt.Errorf("discover: watch rtnetlink: %w", err)
	}
	return &watcher{conn: c}, nil
}

// run owns the socket: it is closed when ctx ends, which wakes the receive, and
// in any case before run returns.
func (w *watcher) run(ctx context.Context, notify func()) error {
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		_ = w.conn.Close()
	})
	defer func() {
		if stop() {
			_ = w.conn.Close()
			return
		}
		<-closed
	}()
	for {
		if err := w.burst(); ctx.Err() != nil {
			return context.Cause(ctx)
		} else if err != nil {
			return fmt.Errorf("discover: watch rtnetlink: %w", err)
		}
		notify()
	}
}

// burst waits for a change, without a limit, and then for those that follow
// within settle.
func (w *watcher) burst() error {
	if err := w.conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	for first := true; ; first = false {
		_, err := w.conn.Receive()
		switch {
		case !first && errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil && !errors.Is(err, unix.ENOBUFS):
			// With ENOBUFS the kernel had more to tell than the socket could hold:
			// what it was is lost, that it was is enough.
			return err
		}
		if !first {
			continue
		}
		if err := w.conn.SetReadDeadline(time.Now().Add(settle)); err != nil {
			return err
		}
	}
}
