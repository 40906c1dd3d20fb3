// Package docs_test checks the pages of the documentation against the code.
package docs_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/natforward/goforward/backends"
	"github.com/natforward/goforward/forward"
)

func page(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestErrorSections checks that each kind of error has a section, and a row with its text.
func TestErrorSections(t *testing.T) {
	routers := page(t, "routers.md")
	for name, err := range map[string]error{
		"ErrNoGateway": forward.ErrNoGateway, "ErrNoReply": backends.ErrNoReply, "ErrNotAuthorized": backends.ErrNotAuthorized,
		"ErrPrivateWAN": backends.ErrPrivateWAN, "ErrNetworkFailure": backends.ErrNetworkFailure,
		"ErrNoResources": backends.ErrNoResources, "ErrConflict": backends.ErrConflict,
		"ErrMalformed": backends.ErrMalformed, "ErrUnsupported": backends.ErrUnsupported,
	} {
		if !strings.Contains(routers, "\n## "+name+"\n") {
			t.Errorf("no section %s", name)
		}
		if row := "| `" + err.Error() + "` | [" + name + "](#" + strings.ToLower(name) + ") |"; !strings.Contains(routers, row) {
			t.Errorf("no row %s", row)
		}
	}
}

// TestLinks checks that the links within the page have targets.
func TestLinks(t *testing.T) {
	routers := page(t, "routers.md")
	anchors := map[string]bool{}
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(routers, -1) {
		plain := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		anchors["#"+strings.ReplaceAll(plain, " ", "-")] = true
	}
	links := regexp.MustCompile(`\]\(([^)]*)\)`).FindAllStringSubmatch(routers, -1)
	for _, link := range links {
		if target := link[1]; strings.HasPrefix(target, "#") && !anchors[target] {
			t.Errorf("the link %s has no target", target)
		} else if !strings.HasPrefix(target, "#") {
			if _, err := os.Stat(target); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestQuotations checks that the error texts that the page quotes are recorded errors of
// package forward.
func TestQuotations(t *testing.T) {
	texts := page(t, "../forward/testdata/errors.txt")
	for _, quoted := range []string{
		"natpmp: map tcp: not authorized or refused (result 2)",
		"pcp: map: not authorized or refused (result 2), for the next 30m0s",
		`upnp: AddPortMapping: action not authorized (error 606: "Action not authorized"): the gateway refuses: perhaps its settings must permit this host to open ports`,
		`upnp: AddPortMapping: action failed (error 501: "Action Failed"): the gateway's external address is private: the gateway reports no address, probably for that reason`,
		"natpmp: map tcp: network failure (result 3)",
		"pcp: map: undefined result (result 99), for the next 30m0s",
	} {
		if !strings.Contains(texts, quoted+"\n") {
			t.Errorf("no error has this text: %s", quoted)
		}
		if !strings.Contains(page(t, "routers.md"), "\n  "+quoted+"\n") {
			t.Errorf("the page does not quote: %s", quoted)
		}
	}
}

// TestFragments checks that the other quoted texts are in the code. The list has them
// without their variable parts.
func TestFragments(t *testing.T) {
	code := sources(t, false, "../backends", "../forward", "../discover", "../internal")
	for _, quoted := range []string{
		"there is no default route", "no route to ", "the internet", "has no next hop, as in a tunnel", "out through interface ",
		"refuses the port (connection refused)", " within ",
		"perhaps because it does not permit ports below 1024",
		"to forward to another host, ", "than the requesting one",
		"another NAT is between the gateway and the internet", "behind another router",
		"a device at ", " answered; it is not ", "is not a gateway", "description at ",
		", but does not list it", "it reports that ", "it lists ", ", but does not forward it: the entry", "is disabled",
		"it still lists the entry",
		"the port is taken", "cannot provide the external port", " is forwarded to ", "the gateway granted port ", " instead of ",
		"it maps ports to the requesting host only", "of this host only",
		"the gateway supports NAT-PMP, not PCP", "no port maps available",
	} {
		if !strings.Contains(code, quoted) {
			t.Errorf("no error has this text: %s", quoted)
		}
		if !strings.Contains(page(t, "routers.md"), quoted) {
			t.Errorf("the page does not quote: %s", quoted)
		}
	}
}
