package cli

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/natforward/goforward/backends"
)

var (
	tcp  = []backends.Protocol{backends.TCP}
	udp  = []backends.Protocol{backends.UDP}
	both = []backends.Protocol{backends.TCP, backends.UDP}
)

func TestParsePorts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args string
		want ports
	}{
		{"", ports{}},
		{"8080", ports{internal: 8080}},
		{"80:8080", ports{80, 8080, nil}},
		{"0:8080", ports{0, 8080, nil}},
		{"80:8080/udp", ports{80, 8080, udp}},
		{"8080/TCP", ports{0, 8080, tcp}},
		{"8080/both", ports{0, 8080, both}},
		{"8080/sctp", ports{0, 8080, []backends.Protocol{backends.SCTP}}},
		{"8080/50", ports{0, 8080, []backends.Protocol{50}}},
		{"6881 6882", ports{6881, 6882, nil}},
		{"0 6882", ports{0, 6882, nil}},
		{"65535:1", ports{65535, 1, nil}},
	} {
		got, err := parsePorts(strings.Fields(tt.args))
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(ports{})); err != nil || diff != "" {
			t.Errorf("%q: %v\n%s", tt.args, err, diff)
		}
	}
}

func TestParsePortsRefuses(t *testing.T) {
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
		{"80:81", "82"},
		{"80", "81/udp"},
		{"1", "2", "3"},
	} {
		got, err := parsePorts(args)
		if classify(err).code != exitUsage {
			t.Errorf("%q: %v, %v", args, got, err)
		}
	}
}

// FuzzParsePorts: what is accepted names an internal port, and reads the same
// when it is written out.
func FuzzParsePorts(f *testing.F) {
	for _, s := range []string{"8080", "80:8080", "80:8080/udp", "8080/both", "0:1/255", "80 8080", "x", "80:0", "1:2:3", "80//udp"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePorts([]string{s})
		if err != nil {
			return
		}
		if p.internal == 0 {
			t.Fatalf("%q: no internal port", s)
		}
		text := fmt.Sprintf("%d:%d", p.external, p.internal)
		switch {
		case slices.Equal(p.protocols, both):
			text += "/both"
		case len(p.protocols) == 1:
			text += fmt.Sprintf("/%d", p.protocols[0])
		}
		if again, err := parsePorts([]string{text}); err != nil || !cmp.Equal(p, again, cmp.AllowUnexported(ports{})) {
			t.Errorf("%q is %v, but %q is %v, %v", s, p, text, again, err)
		}
	})
}
