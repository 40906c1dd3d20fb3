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

// watcher is a socket that has joined the groups that report changes. The groups include
// policy rules and next hop objects, because these affect lookups as routes do.
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

// run calls notify after changes until ctx ends. It closes the socket when ctx ends, which
// wakes up the receive call, and in any case before it returns.
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
		if err := w.waitForChange(); ctx.Err() != nil {
			return context.Cause(ctx)
		} else if err != nil {
			return fmt.Errorf("discover: watch rtnetlink: %w", err)
		}
		notify()
	}
}

// waitForChange waits for a change, without a timeout, and then collects the changes that
// follow within settleTime.
func (w *watcher) waitForChange() error {
	if err := w.conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	for first := true; ; first = false {
		_, err := w.conn.Receive()
		switch {
		case !first && errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil && !errors.Is(err, unix.ENOBUFS):
			// ENOBUFS means that the socket buffer overflowed. The messages are lost, but
			// the error shows that there was a change, which is sufficient.
			return err
		}
		if !first {
			continue
		}
		if err := w.conn.SetReadDeadline(time.Now().Add(settleTime)); err != nil {
			return err
		}
	}
}
