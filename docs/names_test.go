package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// sources returns the text of the Go files below directories, with or without tests.
func sources(t *testing.T, tests bool, dirs ...string) string {
	t.Helper()
	var all strings.Builder
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && !entry.IsDir() && strings.HasSuffix(path, ".go") && (tests || !strings.HasSuffix(path, "_test.go")) {
				all.WriteString(page(t, path))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all.String()
}

// TestSecurityTests checks that the tests that SECURITY.md names exist.
func TestSecurityTests(t *testing.T) {
	code := sources(t, true, "..")
	for _, name := range regexp.MustCompile(`\b(Test|Fuzz)[A-Z]\w+`).FindAllString(page(t, "../SECURITY.md"), -1) {
		if !strings.Contains(code, "\nfunc "+name+"(") {
			t.Errorf("SECURITY.md names %s, which does not exist", name)
		}
	}
}

// TestArchitectureNames checks that the files and names in architecture.md exist.
func TestArchitectureNames(t *testing.T) {
	code, text := sources(t, false, ".."), page(t, "architecture.md")
	for _, file := range regexp.MustCompile(`\b[\w/]+\.go\b`).FindAllString(text, -1) {
		if !strings.Contains(file, "/") {
			file = "internal/gateway/" + file
		}
		if _, err := os.Stat("../" + file); err != nil {
			t.Error(err)
		}
	}
	for _, quoted := range regexp.MustCompile("`([A-Za-z.]+)`").FindAllStringSubmatch(text, -1) {
		name := quoted[1][strings.LastIndex(quoted[1], ".")+1:]
		if !regexp.MustCompile(`(?m)^(func (\([^)]*\) )?|type |package |\t)` + name + `\b`).MatchString(code) {
			t.Errorf("architecture.md names %s, which is not declared", quoted[1])
		}
	}
}
