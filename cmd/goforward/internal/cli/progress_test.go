package cli

import (
	"bytes"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// TestNotice checks that a command which prints nothing for a second prints why it waits,
// once, and only on a terminal.
func TestNotice(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		settings settings
		pipe     bool          // stderr is no terminal
		prints   bool          // the command prints a result before
		ends     time.Duration // when the command ends
		want     string
	}{
		{name: "a slow gateway", ends: time.Minute, want: "Waiting for a reply from the gateway; Ctrl-C ends this.\n"},
		{name: "a named gateway", settings: settings{gateway: netip.MustParseAddrPort("10.2.0.1:5351")}, ends: time.Minute, want: "Waiting for a reply from 10.2.0.1:5351; Ctrl-C ends this.\n"},
		{name: "a name", settings: settings{gatewayName: hostPort{host: "router.local"}}, ends: time.Minute, want: "Waiting for router.local; Ctrl-C ends this.\n"},
		{name: "fast", ends: time.Second - 1},
		{name: "a result before", prints: true, ends: time.Minute},
		{name: "no terminal", pipe: true, ends: time.Minute},
		{name: "--quiet", settings: settings{quiet: true}, ends: time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var stdout, stderr bytes.Buffer
				a := newApp(&stdout, &stderr)
				a.settings = tt.settings
				a.isTerminal = func() bool { return !tt.pipe }
				stop := a.startNotice()
				a.settings.gateway = netip.MustParseAddrPort("10.2.0.1:5351") // as after the lookup of a name
				if tt.prints {
					a.resultf("45.45.45.1:8080\n")
				}
				time.Sleep(tt.ends)
				stop()
				if got := stderr.String(); got != tt.want {
					t.Errorf("%q, want %q", got, tt.want)
				}
			})
		})
	}
}

// TestNoticeOfCommand checks that a command starts the notice.
func TestNoticeOfCommand(t *testing.T) {
	t.Parallel()
	asked := 0
	got := run(t, func(a *app) { a.isTerminal = func() bool { asked++; return false } }, "version")
	if got.code != exitDone || asked != 1 {
		t.Errorf("%+v, asked %d times", got, asked)
	}
}
