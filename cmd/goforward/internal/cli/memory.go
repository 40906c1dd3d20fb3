package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/natforward/goforward/forward"
	"github.com/natforward/goforward/internal/state"
)

const (
	memoryVersion = 1
	maxMemorySize = 512 << 10 // more than the largest file that saveMemory writes
	maxRemembered = 16
	maxTextSize   = 512     // of a URL or the name of an interface
	forgetAfter   = 7 * day // then a run asks all protocols, in case another one is preferred now
)

// memory is the content of the file that records which protocols the gateways supported. The
// gateways are asked again: a wrong file delays a run, and has no other effect.
type memory struct {
	Version  int                 `json:"version"`
	Gateways []rememberedGateway `json:"gateways"` // the last recorded one first
}

// rememberedGateway are the protocols that a gateway supported.
type rememberedGateway struct {
	Choices  []forward.Choice `json:"choices"`            // the preferred one first; all are about one gateway
	Backends []string         `json:"backends,omitempty"` // the value of --backend; nil: all protocols
	Asked    time.Time        `json:"asked"`              // when all protocols were asked
}

// memoryFile returns the path of the file. On Windows, it is in a directory that does not roam:
// it is about the networks of this host.
func memoryFile() (string, error) {
	dir, err := stateDir(os.UserCacheDir)
	if err != nil {
		return "", fmt.Errorf("there is no directory: %w", err)
	}
	return filepath.Join(dir, "gateways.json"), nil
}

// remembered returns what earlier runs recorded, if it applies to this one. It returns nil with
// --fresh, and with --igd-url, which names the device to use.
func (a *app) remembered() (out []forward.Choice) {
	if a.settings.fresh || a.settings.igd != "" {
		return nil
	}
	path, err := a.memoryFile()
	if err != nil {
		a.logMemory("read", err)
		return nil
	}
	gateways, err := a.loadMemory(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.logMemory("read", err)
	}
	a.recorded = gateways
	for _, g := range gateways {
		out = append(out, g.choicesFor(a.settings.backends)...)
	}
	return out
}

// remember records the protocols that a Forwarder used. It writes the file only if they differ
// from what is recorded. A failure is not a failure of the command.
func (a *app) remember(f *forward.Forwarder) { a.recordChoices(f.Choices()) }

// recordChoices is remember for choices.
func (a *app) recordChoices(choices []forward.Choice) {
	var rows []rememberedGateway
	for i, c := range choices {
		if i == 0 || !isSameGateway(c, choices[i-1]) {
			rows = append(rows, rememberedGateway{Backends: a.settings.backends, Asked: time.Now().UTC().Truncate(time.Second)})
		}
		last := &rows[len(rows)-1]
		last.Choices = append(last.Choices, c)
	}
	rows = slices.DeleteFunc(rows, func(g rememberedGateway) bool { return !a.isUsable(g) })
	if _, isChanged := addRemembered(a.recorded, rows); !isChanged || a.settings.igd != "" {
		return
	}
	path, err := a.memoryFile()
	if err != nil {
		return // remembered has logged it
	}
	recorded, _ := a.loadMemory(path) // other programs may have written it since
	recorded, isChanged := addRemembered(recorded, rows)
	if !isChanged {
		return
	}
	// If another program writes the file at the same time, its row can be lost. Its next run
	// records that gateway again.
	if err := saveMemory(path, recorded); err != nil {
		a.logMemory("written", err)
	}
}

// close closes a Forwarder, and records the protocols that it used.
func (a *app) close(f *forward.Forwarder) {
	a.remember(f)
	_ = f.Close()
}

func (a *app) logMemory(done string, err error) {
	if log := a.logger(); log != nil {
		log.Info("the file with the protocols of gateways cannot be "+done, "err", err)
	}
}

func isSameGateway(a, b forward.Choice) bool {
	return a.Gateway == b.Gateway && a.Interface == b.Interface
}

// choicesFor returns the protocols to ask first in a run with that value of --backend. What is
// known from a run with other names does not apply: that run may have used a protocol that this
// one does not prefer. If all protocols were asked, it applies to a run with one name.
func (g rememberedGateway) choicesFor(names []string) (out []forward.Choice) {
	isEqual := slices.Equal(g.Backends, names)
	for _, c := range g.Choices {
		if isEqual || g.Backends == nil && slices.Equal(names, []string{c.Protocol}) {
			out = append(out, c)
		}
	}
	return out
}

// isUsable reports whether a row of the file is complete and recent.
func (a *app) isUsable(g rememberedGateway) bool {
	known := protocolNames(a.protocols)
	for _, c := range g.Choices {
		addr := c.Gateway.Addr()
		if !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() || !slices.Contains(known, c.Protocol) || !isSameGateway(c, g.Choices[0]) {
			return false
		}
		if len(c.Interface) > maxTextSize || len(c.URL) > maxTextSize {
			return false
		}
		if _, err := parseIGD(c.URL); c.URL != "" && err != nil {
			return false
		}
	}
	for _, name := range g.Backends {
		if !slices.Contains(known, name) {
			return false
		}
	}
	return 0 < len(g.Choices) && len(g.Choices) <= len(known) && time.Since(g.Asked).Abs() < forgetAfter
}

// addRemembered returns the rows with new ones at the front, in place of rows about the same
// gateways. It also reports whether the file has to be written.
func addRemembered(old, rows []rememberedGateway) (all []rememberedGateway, isChanged bool) {
	all = slices.Clone(old)
	for _, g := range rows {
		isSame := func(old rememberedGateway) bool {
			return isSameGateway(old.Choices[0], g.Choices[0]) && slices.Equal(old.Backends, g.Backends)
		}
		isKnown := func(old rememberedGateway) bool {
			return slices.Equal(old.choicesFor(g.Backends), g.Choices)
		}
		i := slices.IndexFunc(all, isSame)
		if i < 0 {
			i = slices.IndexFunc(all, isKnown) // from a run with all protocols
		}
		if i >= 0 && isKnown(all[i]) {
			continue
		}
		all = slices.Insert(slices.DeleteFunc(all, isSame), 0, g)
		isChanged = true
	}
	return all[:min(len(all), maxRemembered)], isChanged
}

// loadMemory reads the usable rows of the file. It does not trust a file of another user, a
// link, or a file that others can write.
func (a *app) loadMemory(path string) ([]rememberedGateway, error) {
	text, err := state.ReadOwn(path, maxMemorySize, 0o022)
	if err != nil {
		return nil, err
	}
	var m memory
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if m.Version != memoryVersion {
		return nil, fmt.Errorf("%s: version %d, want %d", path, m.Version, memoryVersion)
	}
	usable := slices.DeleteFunc(m.Gateways, func(g rememberedGateway) bool { return !a.isUsable(g) })
	return usable[:min(len(usable), maxRemembered)], nil
}

// saveMemory replaces the file, and creates its directory. The file is not synced: if a power
// failure damages it, it is ignored.
func saveMemory(path string, gateways []rememberedGateway) error {
	dir := filepath.Dir(path)
	if err := checkOwnDir(dir); err != nil {
		return err
	}
	text, err := json.MarshalIndent(memory{memoryVersion, gateways}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".gateways-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// checkOwnDir returns an error if a directory belongs to another user, except root. If it does
// not exist, its nearest parent that exists counts. With the environment of another user, root
// then creates no directory in which this user cannot create files.
func checkOwnDir(dir string) error {
	info, err := os.Stat(dir)
	for errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		info, err = os.Stat(dir)
	}
	if err == nil && belongsToOther(info) {
		err = fmt.Errorf("%s belongs to another user", dir)
	}
	return err
}
