package discover

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// safeNames are names of x/sys/windows, besides constants, that code of this repository may
// use: types, functions that call no DLL, and functions that every version of Windows and
// Wine has. Every other function panics if the system lacks it.
var safeNames = []string{
	"Errno", "Handle", "LazyProc", "Overlapped",
	"NewCallback", "NewLazySystemDLL",
	"LockFileEx", "SetsockoptInt", "UnlockFileEx",
}

// TestWindowsCalls checks, for the code of the whole repository that uses x/sys/windows,
// that only the function call calls functions of a lazy DLL: they may be missing, and
// LazyProc.Call would panic.
func TestWindowsCalls(t *testing.T) {
	calls := 0
	err := filepath.WalkDir("..", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && entry.Name() != "..":
			return fs.SkipDir
		case strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go"):
			bad, n := windowsCalls(t, name, nil)
			calls += n
			for _, b := range bad {
				t.Error(b)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if calls < 5 {
		t.Errorf("found %d calls of the function call, so this test checks the wrong files", calls)
	}
}

// TestWindowsCallsRejects checks that windowsCalls finds calls that can panic.
func TestWindowsCallsRejects(t *testing.T) {
	const head = "package p\nimport (\"syscall\"; w \"golang.org/x/sys/windows\"; \"unsafe\")\n"
	for source, want := range map[string]int{
		"func f(p *w.LazyProc) { p.Call(1) }":                                      1,
		"func f(p *w.LazyProc) { syscall.SyscallN(p.Addr(), 1) }":                  1,
		"func f() { w.NotifyRouteChange2(0, 0, nil, false, nil) }":                 1,
		"func f() { g := w.CancelMibChangeNotify2; g(0) }":                         1,
		"var p = w.NewLazyDLL(\"x.dll\")":                                          1,
		"var p = w.MustLoadDLL(\"x.dll\")":                                         1,
		"var p = syscall.NewLazyDLL(\"x.dll\")":                                    1,
		"func call(p *w.LazyProc) { p.Call() }":                                    1, // only in files named call_windows.go
		"func f(h w.Handle) error { return w.LockFileEx(h, 0, 0, 1, 0, nil) }":     0,
		"const a = w.AF_UNSPEC; var e = w.Errno(7); var s = unsafe.Sizeof(e)":      0,
		"var d = w.NewLazySystemDLL(\"x.dll\"); var p = d.NewProc(\"GetNothing\")": 0,
	} {
		if bad, _ := windowsCalls(t, "p.go", head+source); len(bad) != want {
			t.Errorf("%s: %v, want %d", source, bad, want)
		}
	}
}

// windowsCalls returns the uses of functions in a file that panic if the system lacks the
// function, and the number of calls of the function call. It parses source, or the file if
// source is nil.
func windowsCalls(t *testing.T, name string, source any) (bad []string, calls int) {
	t.Helper()
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, name, source, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	local := map[string]string{} // the name of an imported package in this file
	for _, i := range file.Imports {
		imported, _ := strconv.Unquote(i.Path.Value)
		local[imported] = path.Base(imported)
		if i.Name != nil {
			local[imported] = i.Name.Name
		}
	}
	windows, usesWindows := local["golang.org/x/sys/windows"]
	inHelper := slices.Contains([]string{"../discover/call_windows.go", "../reach/call_windows.go"}, filepath.ToSlash(name))
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			return !inHelper || n.Name.Name != "call"
		case *ast.CallExpr:
			if f, ok := n.Fun.(*ast.Ident); ok && usesWindows && f.Name == "call" {
				calls++
			}
		case *ast.SelectorExpr:
			of := ""
			if x, ok := n.X.(*ast.Ident); ok {
				of = x.Name
			}
			use := n.Sel.Name
			switch {
			case usesWindows && of == windows:
				if use == strings.ToUpper(use) || slices.Contains(safeNames, use) {
					return true
				}
			case of != "" && of == local["syscall"]:
				if !strings.HasPrefix(use, "Syscall") && !strings.Contains(use, "DLL") {
					return true
				}
			case !usesWindows || use != "Call":
				return true
			}
			bad = append(bad, files.Position(n.Pos()).String()+": "+use+" panics if the system lacks the function")
		}
		return true
	})
	return bad, calls
}
