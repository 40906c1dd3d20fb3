package gateway

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// underLock are the calls that may be made while a lock is held: none of them takes a
// lock of ours, does network I/O or runs the user's code. The state file has a lock that
// is for its I/O.
var allowedUnderLock = []string{
	"append", "close", "delete", "int", "int64", "len", "make", "max", "min",
	"Add", "Clone", "Contains", "Delete", "DeleteFunc", "Errorf", "IndexFunc", "Load", "New", "Or", "Reset", "Until",
	"time.AfterFunc",
	"newOwner",
	"d.run", "l.run", // on goroutines of their own
	"answered", "Answered", // reads an atomic value
	"Round", "Since", "cancel", "Before", // of a context and of times
}

// exempt are functions whose lock is for I/O: that of the state file, which one goroutine
// opens and writes at a time.
var exemptFuncs = []string{"open", "openNow", "run", "write", "close"}

// No lock is held while another lock is taken, or I/O is done, or a function runs that is
// not known to do neither.
func TestCallsUnderLocks(t *testing.T) {
	for _, dir := range []string{".", "../../forward", "../state"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, name, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, decl := range file.Decls {
				f, is := decl.(*ast.FuncDecl)
				if !is || f.Body == nil || strings.HasSuffix(name, "store.go") && slices.Contains(exemptFuncs, f.Name.Name) {
					continue
				}
				for _, call := range callsUnderLock(f.Body.List) {
					if !slices.Contains(allowedUnderLock, lastName(call)) && !slices.Contains(allowedUnderLock, call) {
						t.Errorf("%s: %s calls %s while it holds a lock", name, f.Name.Name, call)
					}
				}
			}
		}
	}
}

// callsUnderLock returns the calls that are made between Lock and Unlock, or after a
// Lock whose Unlock is deferred.
func callsUnderLock(statements []ast.Stmt) (calls []string) {
	locked := false
	for _, s := range statements {
		switch name := lastName(callOf(s)); {
		case name == "Lock" && !locked:
			locked = true
			continue
		case name == "Unlock":
			locked = false
			continue
		}
		if deferred, is := s.(*ast.DeferStmt); is && lastName(exprName(deferred.Call.Fun)) == "Unlock" {
			continue
		}
		ast.Inspect(s, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				if locked {
					calls = append(calls, exprName(n.Fun))
				}
			case *ast.FuncLit: // it runs later
				calls = append(calls, callsUnderLock(n.Body.List)...)
				return false
			case *ast.BlockStmt:
				if !locked {
					calls = append(calls, callsUnderLock(n.List)...)
					return false
				}
			}
			return true
		})
	}
	return calls
}

// callOf returns the name of the function that a statement calls, or nothing.
func callOf(s ast.Stmt) string {
	if e, is := s.(*ast.ExprStmt); is {
		if call, is := e.X.(*ast.CallExpr); is {
			return exprName(call.Fun)
		}
	}
	return ""
}

// text is the name of a function in a call.
func exprName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return exprName(e.X) + "." + e.Sel.Name
	case *ast.FuncLit:
		return "func"
	}
	return fmt.Sprintf("%T", e)
}

func lastName(name string) string { return name[strings.LastIndex(name, ".")+1:] }
