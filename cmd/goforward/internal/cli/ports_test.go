package cli

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/natforward/goforward/backends"
)

func TestParsePorts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args string
		want []ports
	}{
		{"", nil},
		{"8080", []ports{{0, 8080, 1, nil}}},
		{"80:8080", []ports{{80, 8080, 1, nil}}},
		{"0:8080", []ports{{0, 8080, 1, nil}}},
		{"80:8080/udp", []ports{{80, 8080, 1, udp}}},
		{"8080/TCP", []ports{{0, 8080, 1, tcp}}},
		{"8080/both", []ports{{0, 8080, 1, both}}},
		{"8080/sctp", []ports{{0, 8080, 1, []backends.Protocol{backends.SCTP}}}},
		{"8080/50", []ports{{0, 8080, 1, []backends.Protocol{50}}}},
		{"6881 6882", []ports{{6881, 6882, 1, nil}}},
		{"0 6882", []ports{{0, 6882, 1, nil}}},
		{"65535:1", []ports{{65535, 1, 1, nil}}},
		{"80 443/tcp", []ports{{0, 80, 1, nil}, {0, 443, 1, tcp}}},
		{"80 443 8080", []ports{{0, 80, 1, nil}, {0, 443, 1, nil}, {0, 8080, 1, nil}}},
		{"80 443/tcp 27015-27020/both", []ports{{0, 80, 1, nil}, {0, 443, 1, tcp}, {0, 27015, 6, both}}},
		{"8000-8010", []ports{{0, 8000, 11, nil}}},
		{"8000-8000", []ports{{0, 8000, 1, nil}}},
		{"80-90:8080-8090/udp", []ports{{80, 8080, 11, udp}}},
		{"65535-65535", []ports{{0, 65535, 1, nil}}},
		{"ssh", []ports{{0, 22, 1, nil}}},
		{"HTTPS", []ports{{0, 443, 1, nil}}},
		{"8022:ssh/tcp", []ports{{8022, 22, 1, tcp}}},
		{"domain/both", []ports{{0, 53, 1, both}}},
		{"ntp/udp", []ports{{0, 123, 1, udp}}},
	} {
		got, pair, err := parsePorts(strings.Fields(tt.args))
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(ports{})); err != nil || diff != "" {
			t.Errorf("%q: %v\n%s", tt.args, err, diff)
		}
		if want := strings.HasSuffix(tt.args, " 6882"); pair != want {
			t.Errorf("%q: external and internal port: %v, want %v", tt.args, pair, want)
		}
	}
}

func TestParsePortsErrors(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{""},
		{" 80"},
		{"x"},
		{"-1"},
		{"+1"},
		{"65536"},
		{"0x50"},
		{"8_0"},
		{"８０"},
		{"0"},
		{"80:0"},
		{"80:"},
		{":80"},
		{":"},
		{"1:2:3"},
		{"80/"},
		{"/udp"},
		{"80/x"},
		{"80/0"},
		{"80/256"},
		{"80/tcp/udp"},
		{"80", "0"},
		{"80", "x"},
		{"8010-8000"},
		{"8000-"},
		{"-8000"},
		{"8000-8010-8020"},
		{"1-1025"},
		{"1-65535"},
		{"65530-65540"},
		{"80-90:8080"},
		{"80:8080-8090"},
		{"80-90:8080-8089"},
		{"0-10:8080-8090"},
		{"0-10"},
		{"1-1000", "2001-2025"},
		{"tcp"},
		{"no-such-service"},
		{"ssh-http"},
		{"ntp"}, // a UDP service
		{"a/b"},
		{"../etc/passwd"},
	} {
		got, _, err := parsePorts(args)
		if classify(err).code != exitUsage {
			t.Errorf("%q: %v, %v", args, got, err)
		}
	}
}

// FuzzParsePorts checks that accepted arguments name internal ports, and that their text form
// parses to the same ports.
func FuzzParsePorts(f *testing.F) {
	for _, s := range []string{"8080", "80:8080", "80:8080/udp", "8080/both", "0:1/255", "80 8080", "x", "80:0", "1:2:3", "80//udp", "80-90", "1-2:3-4", "ssh"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		all, _, err := parsePorts([]string{s})
		if err != nil {
			return
		}
		p := all[0]
		if len(all) != 1 || p.internal == 0 || p.count == 0 || p.internal+p.count-1 < p.internal || p.external+p.count-1 < p.external {
			t.Fatalf("%q: %v", s, all)
		}
		text := rangeText(p.internal, p.count)
		if p.external != 0 {
			text = rangeText(p.external, p.count) + ":" + text
		}
		switch {
		case slices.Equal(p.protocols, both):
			text += "/both"
		case len(p.protocols) == 1:
			text += fmt.Sprintf("/%d", p.protocols[0])
		}
		if again, _, err := parsePorts([]string{text}); err != nil || !cmp.Equal(all, again, cmp.AllowUnexported(ports{})) {
			t.Errorf("%q is %v, but %q is %v, %v", s, all, text, again, err)
		}
	})
}

// TestParseArgs checks how arguments and flags become mappings.
func TestParseArgs(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args, want string // the names of the mappings; empty: an error
		flags      spec
	}{
		{args: "", want: "a free tcp port"},
		{args: "80 443/tcp 27015-27017/both", want: "80/tcp 443/tcp 27015/both 27016/both 27017/both"},
		{args: "80-81", flags: spec{udp: true}, want: "80/udp 81/udp"},
		{args: "80-81/tcp", flags: spec{udp: true}},
		{args: "80 443/udp 81", flags: spec{protocols: udp}, want: "80/udp 443/udp 81/udp"},
		{args: "27015-27020", flags: spec{asOne: true}, want: "27015-27020/tcp"},
		{args: "27015-27020/both 80/tcp", flags: spec{asOne: true}, want: "27015-27020/both 80/tcp"},
		{args: "80", flags: spec{asOne: true}},
		{args: "", flags: spec{asOne: true}},
		{args: "1000-1999", flags: spec{asOne: true}},
		{args: "80-82", flags: spec{asOne: true, samePort: true}},
		{args: "80 80/tcp"},
		{args: "80/tcp 80/udp", want: "80/tcp 80/udp"},
		{args: "80/both 80/udp"},
		{args: "80-85 83/tcp"},
		{args: "80:8080 80:8081"},
		{args: "80:8080/tcp 80:8081/udp", want: "8080/tcp 8081/udp"},
		{args: "", flags: spec{exact: true}},
		{args: "6881 6881", want: "6881/tcp"},
	} {
		specs, err := tt.flags.parseArgs(strings.Fields(tt.args))
		var names []string
		for _, s := range specs {
			names = append(names, s.name())
		}
		if got := strings.Join(names, " "); got != tt.want && err == nil || (err != nil) != (tt.want == "") {
			t.Errorf("%q %+v: %q, %v; want %q", tt.args, tt.flags, got, err, tt.want)
		}
	}
}

// TestPairLifetime checks that two plain numbers have the default lifetime of py-natpmp.
func TestPairLifetime(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args  string
		flags spec
		want  time.Duration
	}{
		{args: "6881 6881", want: time.Hour},
		{args: "6881 6881", flags: spec{lifetime: time.Minute}, want: time.Minute},
		{args: "6881"},
		{args: "6881:6881"},
		{args: "6881 6882/tcp"},
		{args: "1 2 3"},
	} {
		specs, err := tt.flags.parseArgs(strings.Fields(tt.args))
		if err != nil || specs[0].lifetime != tt.want {
			t.Errorf("%q: lifetime %v, %v, want %v", tt.args, specs[0].lifetime, err, tt.want)
		}
	}
}
