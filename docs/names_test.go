package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// sources returns the text of all Go files below the root of the repository.
func sources(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") && !entry.IsDir() {
			all.WriteString(page(t, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// TestSecurityTests checks that the tests that SECURITY.md names exist.
func TestSecurityTests(t *testing.T) {
	code := sources(t)
	for _, name := range regexp.MustCompile(`\b(Test|Fuzz)[A-Z]\w+`).FindAllString(page(t, "../SECURITY.md"), -1) {
		if !strings.Contains(code, "\nfunc "+name+"(") {
			t.Errorf("SECURITY.md names %s, which does not exist", name)
		}
	}
}

// TestArchitectureNames checks that the files and names in architecture.md exist.
func TestArchitectureNames(t *testing.T) {
	code, text := sources(t), page(t, "architecture.md")
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
