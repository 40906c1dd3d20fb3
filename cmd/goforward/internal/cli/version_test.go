package cli

import (
	"runtime"
	"runtime/debug"
	"testing"
)

func TestVersionText(t *testing.T) {
	t.Parallel()
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "89174f2b3c4d5e6f708192a3b4c5d6e7f8091a2b"}
	at := debug.BuildSetting{Key: "vcs.time", Value: "2026-11-27T10:20:30Z"}
	system := " " + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
	for name, test := range map[string]struct {
		info debug.BuildInfo
		want string
	}{
		"release":  {debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}}, "goforward v1.2.3 (no revision recorded)"},
		"go build": {debug.BuildInfo{Main: debug.Module{Version: "v1.2.4-0.1"}, Settings: []debug.BuildSetting{revision, at, {Key: "vcs.modified", Value: "false"}}}, "goforward v1.2.4-0.1 (revision 89174f2b3c4d of 2026-11-27)"},
		"modified": {debug.BuildInfo{Main: debug.Module{Version: "(devel)"}, Settings: []debug.BuildSetting{revision, at, {Key: "vcs.modified", Value: "true"}}}, "goforward (devel) (revision 89174f2b3c4d of 2026-11-27, modified)"},
		"go run":   {debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}, "goforward (devel) (no revision recorded)"},
		"nothing":  {debug.BuildInfo{}, "goforward (devel) (no revision recorded)"},
		"short":    {debug.BuildInfo{Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "17"}}}, "goforward (devel) (revision 17)"},
	} {
		if got := versionOf(&test.info).text(); got != test.want+system {
			t.Errorf("%s: %q, want %q", name, got, test.want+system)
		}
	}
}
