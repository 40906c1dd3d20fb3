package labtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// TestStateFile checks a program that is killed and started again. With its state file,
// it gets the same external port again, although the port that it prefers is free by
// then. Without the file, it gets the preferred port.
func TestStateFile(t *testing.T) {
	t.Parallel()
	for name, with := range map[string]bool{"with the state file": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "state: killed and started again, "+name)
			home := lab.Home(t, lab.Router{})
			occupyPort(t, home, "tcp", 8080)
			c := config{Protocols: []string{"natpmp"}} // on a busy machine, the second program could choose another one
			if with {
				c.StateFile = filepath.Join(t.TempDir(), "state")
			}
			echo := home.Lan.Echo(t, "tcp", ":8080")
			first := newForwarder(t, home.Lan, c)
			m := first.enable(tcp(8080))
			firstExternal := m.External
			if firstExternal.Port() == 8080 {
				t.Fatalf("%+v", m.state)
			}
			if with {
				waitUntil(t, maxWait, "the mapping is not in the state file", func() bool {
					b, _ := os.ReadFile(c.StateFile)
					return strings.Contains(string(b), firstExternal.String())
				})
			}
			first.proc.Kill()
			// The neighbour's port becomes free. The test deletes the rule by nft; a deletion
			// request from the neighbour has the same effect.
			home.Router.Exec(t, "sh", "-ec", `
				nft -a list chain inet filter prerouting_miniupnpd |
				sed -n 's/.*192.168.77.3.*handle \([0-9]*\)$/\1/p' |
				while read -r h; do nft delete rule inet filter prerouting_miniupnpd handle "$h"; done`)
			wantRules(t, home, 1)

			again := newForwarder(t, home.Lan, c).enable(tcp(8080))
			home.Reaches(t, echo, again.External)
			want := 2 // the mapping of the killed program stays until its lifetime ends
			if with {
				want = 1
			}
			if (again.External == firstExternal) != with {
				t.Errorf("now %v, had %v", again.External, firstExternal)
			}
			wantRules(t, home, want)
		})
	}
}
