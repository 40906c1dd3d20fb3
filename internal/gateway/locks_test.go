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

// allowedUnderLock lists the calls that are allowed while a lock is held. None of them
// acquires a lock of this module, does network I/O or runs user code.
var allowedUnderLock = []string{
	"append", "close", "delete", "int", "int64", "len", "make", "max", "min",
	"Add", "Clone", "Contains", "Delete", "DeleteFunc", "Errorf", "IndexFunc", "Load", "New", "Or", "Reset", "Until",
	"time.AfterFunc",
	"newOwner",
	"d.run", "l.run", // they run on goroutines of their own
	"lastReply", "LastReply", // read an atomic value
	"a.listener.SetDeadline", "Unix", // SetDeadline wakes an Accept, and does no I/O
	"Round", "Since", "cancel", "Before", // methods of contexts and times
}

// exemptFuncs lists functions of store.go that hold a lock during I/O: the lock of the state
// file, which only one goroutine may open or write at a time.
var exemptFuncs = []string{"open", "openNow", "run", "write", "close"}

// TestCallsUnderLocks checks that code that holds a lock makes only calls of
// allowedUnderLock: none acquires another lock, does I/O or runs unknown code.
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

// callsUnderLock returns the calls between Lock and Unlock, and those after a Lock with a
// deferred Unlock.
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

// callOf returns the name of the function that a statement calls, or "".
func callOf(s ast.Stmt) string {
	if e, is := s.(*ast.ExprStmt); is {
		if call, is := e.X.(*ast.CallExpr); is {
			return exprName(call.Fun)
		}
	}
	return ""
}

// exprName returns the name of the function in a call.
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
