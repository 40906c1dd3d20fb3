package cli

import (
	"cmp"
	"os"
	"time"
)

// noticeAfter is how long a command waits silently before it says so.
const noticeAfter = time.Second

// startNotice prints a line if the command has printed nothing after noticeAfter, because it
// waits for the gateway. It is for people: it prints nothing if stderr is no terminal. The
// returned function ends it.
func (a *app) startNotice() (stop func()) {
	if !a.isTerminal() {
		return func() {}
	}
	text := a.settings.gatewayText() // the settings may change later
	printed := make(chan struct{})
	timer := time.AfterFunc(noticeAfter, func() {
		defer close(printed)
		if a.stdout.isUnused() && a.stderr.isUnused() {
			a.messagef("Waiting for %s; Ctrl-C ends this.\n", text)
		}
	})
	return func() {
		if !timer.Stop() {
			<-printed
		}
	}
}

// gatewayText names the gateway for people.
func (s *settings) gatewayText() string {
	if named := s.namedGateway(); named.IsValid() {
		return "a reply from " + endpointText(named)
	}
	return cmp.Or(s.gatewayName.host, "a reply from the gateway")
}

// stderrIsTerminal reports whether stderr is a terminal. The null device counts as one, which
// does no harm.
func (a *app) stderrIsTerminal() bool {
	file, ok := a.stderr.w.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
