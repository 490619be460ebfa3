package gateway

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"mailweir/inspect"
)

// TestEventsReference holds docs/reference/events.md against the schema and against the events that the sources record.
func TestEventsReference(t *testing.T) {
	const root = "../../.."
	page, err := os.ReadFile(filepath.Join(root, "docs/reference/events.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[inspect.Event](), reflect.TypeFor[inspect.Finding]()} {
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			if !strings.Contains(string(page), "`"+name+"`") {
				t.Errorf("the field %s is not described", name)
			}
		}
	}
	described := map[string]bool{}
	_, lists, _ := strings.Cut(string(page), "## Mail")
	for _, row := range regexp.MustCompile("(?m)^\\| (`.*?`) \\|").FindAllStringSubmatch(lists, -1) {
		for _, name := range regexp.MustCompile("`([a-z-]+)`").FindAllStringSubmatch(row[1], -1) {
			described[name[1]] = true
		}
	}
	recorded := recordedEvents(t, root)
	for name, where := range recorded {
		if !described[name] {
			t.Errorf("%s records %q, which is not described", where, name)
		}
	}
	for name := range described {
		if recorded[name] == "" {
			t.Errorf("%q is described, and nobody records it", name)
		}
	}
}

// recordedEvents finds the names of events in the sources: the first string in calls of event and special, the field
// Event of an inspect.Event, and constants and assignments called Event.
func recordedEvents(t *testing.T, root string) map[string]string {
	t.Helper()
	names := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if d.IsDir() {
			top, _, _ := strings.Cut(rel, string(filepath.Separator))
			if top == "scripts" || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && rel != "." || strings.HasSuffix(d.Name(), "test") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		add := func(e ast.Expr) {
			lit, ok := e.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return
			}
			if s, err := strconv.Unquote(lit.Value); err == nil {
				names[s] = rel
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch x := n.(type) {
			case *ast.CallExpr:
				if len(x.Args) > 0 && (named(x.Fun, "event") || named(x.Fun, "special")) {
					add(x.Args[0])
				}
			case *ast.CompositeLit:
				for _, e := range x.Elts {
					if kv, ok := e.(*ast.KeyValueExpr); ok && named(kv.Key, "Event") && named(x.Type, "Event") {
						add(kv.Value)
					}
				}
			case *ast.ValueSpec:
				for i, v := range x.Values {
					if strings.HasPrefix(x.Names[i].Name, "Event") {
						add(v)
					}
				}
			case *ast.AssignStmt:
				for i, l := range x.Lhs {
					if sel, ok := l.(*ast.SelectorExpr); ok && sel.Sel.Name == "Event" && i < len(x.Rhs) {
						add(x.Rhs[i])
					}
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func named(e ast.Expr, name string) bool {
	switch x := e.(type) {
	case *ast.Ident:
		return x.Name == name
	case *ast.SelectorExpr:
		return x.Sel.Name == name
	}
	return false
}
