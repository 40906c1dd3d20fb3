package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Long:    versionHelp,
		Example: versionExamples,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			a.printVersion()
			return nil
		},
	}
}

// printVersion prints the version as one line or as an object.
func (a *app) printVersion() {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	r := versionOf(info)
	if a.settings.json {
		a.printJSON(r)
		return
	}
	a.resultf("%s\n", r.text())
}

// versionRecord is the version in JSON. The fields that the go command did not record are
// omitted.
type versionRecord struct {
	Event    string `json:"event"`
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Time     string `json:"time,omitempty"`     // time of the revision
	Modified *bool  `json:"modified,omitempty"` // the files differed from the revision
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// versionOf reads what the go command recorded in the program. Without a version control
// system, as with go run, it recorded no revision. Without a module version, the version is
// (devel).
func versionOf(info *debug.BuildInfo) versionRecord {
	r := versionRecord{
		Event: "version", Version: info.Main.Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	if r.Version == "" {
		r.Version = "(devel)"
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			r.Revision = s.Value
		case "vcs.time":
			r.Time = s.Value
		case "vcs.modified":
			modified := s.Value == "true"
			r.Modified = &modified
		}
	}
	return r
}

// shortRevision is the number of characters of a revision that people see.
const shortRevision = 12

// text describes the version to people.
func (r versionRecord) text() string {
	revision := "no revision recorded"
	if r.Revision != "" {
		revision = "revision " + r.Revision[:min(len(r.Revision), shortRevision)]
		if date, _, _ := strings.Cut(r.Time, "T"); date != "" {
			revision += " of " + date
		}
		if r.Modified != nil && *r.Modified {
			revision += ", modified"
		}
	}
	return fmt.Sprintf("goforward %s (%s) %s %s", r.Version, revision, r.Go, r.Platform)
}
