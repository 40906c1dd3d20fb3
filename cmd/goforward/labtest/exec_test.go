package labtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// The provider gives the router another address, and the hook is told: where the
// router announces it, at once; by UPnP alone at the next renewal.
func TestExecAddress(t *testing.T) {
	t.Parallel()
	for backend, router := range map[string]lab.Router{"natpmp": {NoUPnP: true}, "pcp": pcpOnly, "upnp": upnpOnly} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			lab.Scenario(t, "cli: another external address, and the hook is told, "+backend)
			home := lab.Home(t, router)
			told := filepath.Join(t.TempDir(), "told")
			port := filepath.Join(t.TempDir(), "port")
			c := goforward(t, home.Lan, "map", "8080", "--hold", "--lifetime", "8", "--port-file", port, "--exec",
				`sh -c 'echo $GOFORWARD_EVENT $GOFORWARD_EXTERNAL_IP:$GOFORWARD_EXTERNAL_PORT $GOFORWARD_BACKEND >>`+told+`'`)
			read := func(path string) string {
				b, _ := os.ReadFile(path)
				return string(b)
			}
			until(t, patience, "the hook does not run", func() bool { return read(told) != "" && read(port) == "8080\n" })
			home.Router.Exec(t, "sh", "-ec", "ip addr add 45.45.45.77/24 dev wan0; ip addr del 45.45.45.1/24 dev wan0; ip addr show dev wan0 | grep -q 45.45.45.77 || ip addr add 45.45.45.77/24 dev wan0")
			until(t, patience, "the hook does not run again", func() bool { return strings.Count(read(told), "\n") > 1 })
			if got, want := read(told), "mapped 45.45.45.1:8080 "+backend+"\nchanged 45.45.45.77:8080 "+backend+"\n"; got != want {
				t.Errorf("the hook was told %q, want %q", got, want)
			}
			c.Signal(os.Interrupt)
			c.Wait()
			if _, err := os.Stat(port); err == nil {
				t.Error("the port file stays")
			}
			wantRules(t, home, 0)
		})
	}
}
