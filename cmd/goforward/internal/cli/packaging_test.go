package cli

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const reflectorRecipes = "../../../../packaging/reflector/"

// recipe returns a file of packaging/reflector.
func recipe(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(reflectorRecipes + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestRecipeCommands checks that every command line of the recipes for a reflector is valid, so that
// a renamed flag does not break them.
func TestRecipeCommands(t *testing.T) {
	t.Parallel()
	command := regexp.MustCompile(`(?m)^(?:ExecStart=\S*/|\$ |)goforward (reflect\b.*)$`)
	for name, want := range map[string]int{"goforward-reflect.service": 1, "token.conf": 1, "README.md": 4, "../../docs/reflector.md": 2} {
		all := command.FindAllStringSubmatch(recipe(t, name), -1)
		if len(all) < want {
			t.Errorf("%s has %d commands, want %d", name, len(all), want)
		}
		for _, m := range all {
			line, _, _ := strings.Cut(m[1], " #")
			line = strings.ReplaceAll(line, "%d/", "/run/credentials/")
			if err := checkExample(line); err != nil || strings.Contains(line, "%") {
				t.Errorf("%s: %q: %v", name, line, err)
			}
		}
	}
	// The flags that the container gets after the name of its image.
	for _, m := range regexp.MustCompile(`(?m)^podman run .* goforward-reflect(.*)$`).FindAllStringSubmatch(recipe(t, "README.md"), -1) {
		if err := checkExample("reflect" + m[1]); err != nil {
			t.Errorf("%q: %v", m[0], err)
		}
	}
	if err := checkExample("reflect --no-such-flag x"); err == nil {
		t.Error("an invalid flag is not noticed")
	}
}

// TestReflectorUnit checks that the unit gives the reflector no privileges, and that systemd accepts it
// if this host has systemd.
func TestReflectorUnit(t *testing.T) {
	t.Parallel()
	const name = "goforward-reflect.service"
	text := recipe(t, name)
	lines := strings.Split(text, "\n")
	for _, want := range []string{
		"DynamicUser=yes", "CapabilityBoundingSet=", "AmbientCapabilities=", "NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=yes", "PrivateDevices=yes",
		"RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK", "SystemCallFilter=@system-service", "MemoryDenyWriteExecute=yes", "Type=exec",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("the unit has no line %s", want)
		}
	}
	if !regexp.MustCompile(`(?m)^MemoryMax=\d+M$`).MatchString(text) || !regexp.MustCompile(`(?m)^TimeoutStopSec=1[1-9]s$`).MatchString(text) {
		t.Error("the memory or the time to stop is not bounded")
	}
	if !strings.Contains(recipe(t, "token.conf"), "\nLoadCredential=token:") {
		t.Error("the token is no credential")
	}
	// systemctl edit writes override.conf, whose command line must be the last one: it may have --cert.
	if installed := regexp.MustCompile(`/goforward-reflect\.service\.d/(\S+)`).FindStringSubmatch(recipe(t, "README.md")); installed == nil || installed[1] >= "override.conf" {
		t.Errorf("token.conf is installed as %q, which does not come before override.conf", installed)
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("this host has no systemd-analyze")
	}
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	installed := regexp.MustCompile(`(?m)^(ExecStart=)/usr/local/bin/goforward`)
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(installed.ReplaceAllString(text, "${1}"+self)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(name, text)
	write(name+".d/token.conf", recipe(t, "token.conf"))
	verify := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", filepath.Join(dir, name))
	verify.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
	if out, err := verify.CombinedOutput(); err != nil || strings.Contains(string(out), name) {
		t.Errorf("verify: %v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), analyze, "security", "--offline=true", "--threshold=20", filepath.Join(dir, name)).CombinedOutput()
	if strings.Contains(string(out), "unrecognized option") {
		t.Skip("systemd-analyze is too old")
	}
	if err != nil {
		t.Errorf("security: %v\n%s", err, out)
	}
}

// TestReflectorContainer checks the command and the user of the container.
func TestReflectorContainer(t *testing.T) {
	t.Parallel()
	stages := strings.Split(recipe(t, "Containerfile"), "\nFROM ")[1:] // the first part is a comment
	build, last := stages[0], stages[len(stages)-1]
	if len(stages) != 2 || !strings.HasPrefix(last, "scratch\n") || !regexp.MustCompile(`(?m)^USER [1-9]\d*:[1-9]\d*$`).MatchString(last) {
		t.Errorf("the last stage has more than the program, or its user is root:\n%s", last)
	}
	mod, err := os.ReadFile("../../../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindSubmatch(mod)
	if version == nil || !strings.Contains(build, "/golang:"+string(version[1])+" AS build\n") {
		t.Errorf("the container is not built with the version of go.mod, %s:\n%s", version, build)
	}
	var args []string
	for _, name := range []string{"ENTRYPOINT", "CMD"} {
		m := regexp.MustCompile(`(?m)^` + name + ` (\[.*\])$`).FindStringSubmatch(last)
		var words []string
		if m == nil || json.Unmarshal([]byte(m[1]), &words) != nil {
			t.Fatalf("no %s in %s", name, last)
		}
		args = append(args, words...)
	}
	if args[0] != "/goforward" || !strings.Contains(last, " /goforward\n") {
		t.Errorf("the command is %q", args)
	}
	if err := checkExample(strings.Join(args[1:], " ")); err != nil {
		t.Errorf("%q: %v", args, err)
	}
}
