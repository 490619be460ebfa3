package arch

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"sort"
)

// Sizes above which a reader gets lost.
const (
	maxFileLines = 800
	maxFuncLines = 150
)

// starters are the packages that may start goroutines; each waits for those it started.
func starters() []string {
	return []string{"proxy", "proxy/smtp", "proxy/pop3", "proxy/imap", "proxy/proxytest", "inspect/maild", "divert", "cmd/internal/control",
		"cmd/internal/gateway", "cmd/mailweir", "scripts/..."}
}

// size complains about files that are too long.
func size(f *file) []Complaint {
	if f.lines <= maxFileLines {
		return nil
	}
	return []Complaint{{f.name, 1, fmt.Sprintf("has %d lines, more than %d", f.lines, maxFileLines)}}
}

// form complains about what stands inside of one file.
func form(f *file) (bad []Complaint) {
	for _, d := range f.syntax.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		if fn.Recv == nil && fn.Name.Name == "init" {
			bad = append(bad, Complaint{f.name, f.line(fn.Pos()), "has an init function: nothing runs before main says so"})
		}
		if n := f.line(fn.End()) - f.line(fn.Pos()) + 1; n > maxFuncLines {
			bad = append(bad, Complaint{f.name, f.line(fn.Pos()), fmt.Sprintf("function %s has %d lines, more than %d", fn.Name.Name, n, maxFuncLines)})
		}
	}
	if matches(f.dir, starters()) {
		return bad
	}
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		if g, ok := n.(*ast.GoStmt); ok {
			bad = append(bad, Complaint{f.name, f.line(g.Pos()), "starts a goroutine: " + f.dir + " is not among those that may"})
		}
		return true
	})
	return bad
}

// comments complains about packages without exactly one package comment.
func comments(files []*file) (bad []Complaint) {
	first := map[string]*file{}
	count := map[string]int{}
	for _, f := range files {
		if f.test {
			continue
		}
		if first[f.dir] == nil {
			first[f.dir] = f
		}
		if f.syntax.Doc != nil {
			count[f.dir]++
		}
	}
	for dir, f := range first {
		if n := count[dir]; n != 1 {
			bad = append(bad, Complaint{f.name, 1, fmt.Sprintf("package %s has %d package comments, wanted one", path.Clean(dir), n)})
		}
	}
	sort.Slice(bad, func(i, j int) bool { return bad[i].File < bad[j].File })
	return bad
}

// state complains about package variables that some function of their package changes, and about variables whose type
// exists to be changed. Tables that are only read and sentinel errors are no state.
func state(files []*file) (bad []Complaint) {
	type variable struct {
		f    *file
		line int
	}
	vars := map[string]map[string]variable{}
	for _, f := range files {
		if f.test {
			continue
		}
		for _, d := range f.syntax.Decls {
			gen, ok := d.(*ast.GenDecl)
			if !ok || gen.Tok != token.VAR {
				continue
			}
			for _, s := range gen.Specs {
				spec := s.(*ast.ValueSpec)
				if sel, ok := spec.Type.(*ast.SelectorExpr); ok && mutable(sel) {
					bad = append(bad, Complaint{f.name, f.line(spec.Pos()), "package variable " + spec.Names[0].Name + " is state"})
				}
				for _, n := range spec.Names {
					if vars[f.dir] == nil {
						vars[f.dir] = map[string]variable{}
					}
					vars[f.dir][n.Name] = variable{f, f.line(n.Pos())}
				}
			}
		}
	}
	for _, f := range files {
		if f.test {
			continue
		}
		for _, name := range assigned(f) {
			if v, ok := vars[f.dir][name]; ok && name != "_" {
				bad = append(bad, Complaint{v.f.name, v.line, "package variable " + name + " is changed by " + path.Base(f.name)})
			}
		}
	}
	return bad
}

// mutable reports whether a type from another package is one that is made to be changed. A sync.Pool is let through:
// nobody can tell whether it holds anything.
func mutable(t *ast.SelectorExpr) bool {
	pkg, ok := t.X.(*ast.Ident)
	return ok && (pkg.Name == "atomic" || pkg.Name == "sync" && t.Sel.Name != "Pool")
}

// assigned returns the plain names that the functions of f assign to and do not declare themselves.
func assigned(f *file) (names []string) {
	for _, d := range f.syntax.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Body == nil {
			continue
		}
		local := locals(fn)
		add := func(e ast.Expr) {
			if n := base(e); n != "" && !local[n] {
				names = append(names, n)
			}
		}
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			switch s := n.(type) {
			case *ast.AssignStmt:
				if s.Tok != token.DEFINE {
					for _, l := range s.Lhs {
						add(l)
					}
				}
			case *ast.IncDecStmt:
				add(s.X)
			}
			return true
		})
	}
	return names
}

// locals returns every name that fn declares, wherever in it.
func locals(fn *ast.FuncDecl) map[string]bool {
	out := map[string]bool{}
	fields := func(l *ast.FieldList) {
		if l == nil {
			return
		}
		for _, f := range l.List {
			for _, n := range f.Names {
				out[n.Name] = true
			}
		}
	}
	fields(fn.Recv)
	ast.Inspect(fn, func(n ast.Node) bool {
		switch s := n.(type) {
		case *ast.FuncType:
			fields(s.Params)
			fields(s.Results)
		case *ast.AssignStmt:
			if s.Tok == token.DEFINE {
				for _, l := range s.Lhs {
					out[base(l)] = true
				}
			}
		case *ast.RangeStmt:
			if s.Tok == token.DEFINE {
				out[base(s.Key)] = true
				out[base(s.Value)] = true
			}
		case *ast.ValueSpec:
			for _, n := range s.Names {
				out[n.Name] = true
			}
		}
		return true
	})
	return out
}

// base returns the variable that an assignable expression begins with.
func base(e ast.Expr) string {
	switch x := e.(type) {
	case *ast.Ident:
		return x.Name
	case *ast.IndexExpr:
		return base(x.X)
	case *ast.SelectorExpr:
		return base(x.X)
	case *ast.StarExpr:
		return base(x.X)
	case *ast.ParenExpr:
		return base(x.X)
	}
	return ""
}
