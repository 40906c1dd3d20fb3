package forward

import (
	"testing"
	"time"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/internal/state"
)

// What a gateway cannot have any more is forgotten, and what it may have is not.
func TestForgotten(t *testing.T) {
	for name, c := range map[string]struct {
		ago, lifetime time.Duration
		want          bool
	}{
		"lasts":                     {time.Minute, time.Hour, false},
		"written down a while ago":  {65 * time.Minute, time.Hour, false},
		"gone":                      {2 * time.Hour, time.Hour, true},
		"without an end":            {24 * time.Hour, backends.Forever, false},
		"without an end, never met": {60 * 24 * time.Hour, backends.Forever, true},
	} {
		r := state.Record{Mapping: backends.Mapping{Granted: time.Now().Add(-c.ago), Lifetime: c.lifetime}}
		if got := isObsolete(r); got != c.want {
			t.Errorf("%s: forgotten %v, want %v", name, got, c.want)
		}
	}
}
