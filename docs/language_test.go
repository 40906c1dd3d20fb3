package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

// constructions are wordings that plain technical English does not use, each with its
// replacement. They are rejected in comments, strings, scripts and pages.
var constructions = []struct {
	pattern *regexp.Regexp
	instead string
}{
	{regexp.MustCompile(`(?i)\bwhere (it|the|a|an|one|none|nobody|there|that|they|what|all|several|another|its|this|we|somebody|no|nothing|some)\b`), `"if" for a condition; name a place by a noun`},
	{regexp.MustCompile(`(?i)\b(nobody|somebody|everybody|whoever|whomever)\b`), `name the host, the program or the caller: "no host", "another client"`},
	{regexp.MustCompile(`(?i)\bwho (has|have|is|was|asks|waits|holds|talks|calls|answers?|comes)\b|\bis for (who|what)`), `programs, hosts and packets are not persons: "that", "the host that"`},
	{regexp.MustCompile(`(?i)\b(is|are|was|were|be|been) told\b`), `"receives", "reports", "is notified"`},
	{regexp.MustCompile(`(?i)\btaken away\b|\b(takes?|taking|took) .{1,20} away\b`), `"deletes", "is deleted"`},
	{regexp.MustCompile(`(?i)\bwhat (it|they|came|becomes)\b`), `a noun: "the response", "the mappings that it holds"`},
	{regexp.MustCompile(`(?i)\b(lest|anew|for ever|all the same|to be had|whatever)\b`), `"so that … not", "again", "without an end", "nevertheless", "available", "any"`},
	{regexp.MustCompile(`(?i)\bthat of\b|\bof ours\b`), `repeat the noun`},
	{regexp.MustCompile(`(?i)\bgoes? by\b|\bso asked\b|'s inverse`), `say what happens`},
}

// retired are words of names that were replaced by the terms of the vocabulary in
// CONTRIBUTING.md. They are rejected in declared names.
var retired = map[string]string{
	"wish": "spec, request", "errand": "hook", "debt": "pendingDelete", "owe": "pendingDelete", "cure": "retry",
	"leg": "grant", "hunt": "mapWithRetry", "rival": "conflict, secondRouter", "spoil": "corrupt, mutate",
	"spoiler": "mutator", "insist": "requireRepeats", "hurry": "cancelInFlight", "interview": "queryStatus",
	"strangers": "nonGateways", "breather": "retryDelay", "bereave": "markLost", "hasten": "scheduleSooner",
	"assure": "renewOrCreate", "displace": "replaceExisting", "seat": "socketConfig", "inbox": "dedup",
	"prey": "victim",
}

// data are strings that are input of a test and not sentences: a lifetime, a user name.
var data = regexp.MustCompile(`^for ever$|user nobody`)

// scenarios returns the names of the lab scenarios. They do not change, so that results of
// different versions can be compared.
func scenarios(t *testing.T) string { return page(t, "../cmd/goforward/labtest/list.txt") }

// walkTexts calls check for each comment and string of the Go files below root, and for each
// paragraph of pages and comment of scripts. It calls name for each declared name.
func walkTexts(t *testing.T, root string, check func(where, text string), name func(where, name string)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == "testdata" || entry.Name() == ".git" || entry.Name() == ".bin"):
			return fs.SkipDir
		case entry.IsDir():
			return nil
		case strings.HasSuffix(path, ".go"):
			return readGo(path, check, name)
		case strings.HasSuffix(path, ".md"):
			return readLines(path, func(line string) string { return line }, check)
		case entry.Name() == "Makefile", strings.HasSuffix(path, ".sh"), strings.HasSuffix(path, ".yml"),
			filepath.Base(filepath.Dir(path)) == ".ci", filepath.Base(filepath.Dir(path)) == "packaging":
			return readLines(path, shellComment, check)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// shellComment returns the comment of a line of a script, or "".
func shellComment(line string) string {
	_, comment, found := strings.Cut(line, "# ")
	if !found {
		return ""
	}
	return comment
}

// readLines calls check for each paragraph of a file, after part selected the text of
// each line.
func readLines(path string, part func(string) string, check func(where, text string)) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var paragraph []string
	for line := range strings.SplitSeq(string(b)+"\n", "\n") {
		if text := part(line); strings.TrimSpace(text) != "" {
			paragraph = append(paragraph, strings.TrimSpace(text))
			continue
		}
		check(path, strings.Join(paragraph, " "))
		paragraph = nil
	}
	return nil
}

// readGo calls check for each comment and string, and name for each declared name of a
// Go file. Sentences can cross lines, so comments are joined.
func readGo(path string, check, name func(where, text string)) error {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, nil, parser.ParseComments)
	if err != nil {
		return err
	}
	where := func(n ast.Node) string { return files.Position(n.Pos()).String() }
	for _, group := range file.Comments {
		check(where(group), strings.Join(strings.Fields(group.Text()), " "))
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ImportSpec:
			return false
		case *ast.BasicLit:
			if text, err := strconv.Unquote(n.Value); err == nil && n.Kind == token.STRING {
				check(where(n), strings.Join(strings.Fields(text), " "))
			}
		case *ast.FuncDecl:
			name(where(n), n.Name.Name)
		case *ast.TypeSpec:
			name(where(n), n.Name.Name)
		case *ast.ValueSpec:
			for _, id := range n.Names {
				name(where(id), id.Name)
			}
		case *ast.Field:
			for _, id := range n.Names {
				name(where(id), id.Name)
			}
		case *ast.AssignStmt:
			for _, x := range n.Lhs {
				if id, ok := x.(*ast.Ident); ok && n.Tok == token.DEFINE {
					name(where(id), id.Name)
				}
			}
		}
		return true
	})
	return nil
}

// words splits a name such as errTwoWords into lower-case words.
func words(name string) (out []string) {
	start := 0
	for i, r := range name {
		if i > start && unicode.IsUpper(r) {
			out = append(out, strings.ToLower(name[start:i]))
			start = i
		}
	}
	return append(out, strings.ToLower(name[start:]))
}

// TestLanguage checks that no text contains a rejected construction, and that no declared
// name contains a retired word.
func TestLanguage(t *testing.T) {
	names := scenarios(t)
	walkTexts(t, "..", func(where, text string) {
		text = strings.TrimSpace(data.ReplaceAllString(text, ""))
		if text == "" || strings.Contains(where, "language_test.go") || strings.Contains(names, text) {
			return
		}
		for _, c := range constructions {
			if found := c.pattern.FindString(text); found != "" {
				t.Errorf("%s: %q: write %s:\n\t%s", where, found, c.instead, text)
			}
		}
	}, func(where, name string) {
		for _, word := range words(name) {
			if instead, ok := retired[word]; ok {
				t.Errorf("%s: the name %s: the vocabulary in CONTRIBUTING.md has %s", where, name, instead)
			}
		}
	})
}

// TestLanguagePatterns checks that the patterns reject sentences that this project once
// had, and accept their replacements.
func TestLanguagePatterns(t *testing.T) {
	rejected := func(text string) bool {
		for _, c := range constructions {
			if c.pattern.MatchString(text) {
				return true
			}
		}
		return false
	}
	for before, after := range map[string]string{
		"the library asks again where the gateway is silent":         "the library sends the request again if the gateway does not answer",
		"the mapping is taken away when the program ends":            "the mapping is deleted when the program ends",
		"whoever holds the port is told":                             "the Forwarder that holds the port receives an event",
		"a datagram of somebody else":                                "a datagram from another host",
		"who asks first is served first":                             "requests are answered in the order in which they arrived",
		"what it grants is not that of the request":                  "the granted port differs from the requested port",
		"grants for ever, lest a program crash":                      "grants permanent mappings only",
		"what they forward goes by the internal port":                "entries are identified by the internal port",
		"the address is as it was, or none is to be had":             "the address is unchanged, or none is available",
		"it is asked for anew, whatever the answer, and is for what": "it is requested again after any response",
	} {
		if !rejected(before) {
			t.Errorf("accepted: %s", before)
		}
		if rejected(after) {
			t.Errorf("rejected: %s", after)
		}
	}
	if got := strings.Join(words("errTwoWords"), " "); got != "err two words" {
		t.Errorf("words: %s", got)
	}
}
