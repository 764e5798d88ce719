package arch

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/constant"
	"go/token"
	"go/types"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// room is one type-checked package, and what is known of its functions so far.
type room struct {
	dir   string // relative to the module's root
	fset  *token.FileSet
	files []*ast.File
	info  *types.Info
	decls map[*types.Func]*ast.FuncDecl
	known map[*types.Func]summary
	spare map[string]bool      // functions of unpointed that do something
	loose map[*types.Func]bool // functions that somebody may call whom the room does not see
	gaps  []gap
}

// summary is what a caller has to know of a function.
type summary struct {
	first string // a side effect that may come before any fail point, "" for none
	last  string // one that may come behind all of them
	idle  bool   // it may do neither
}

// state is what has come last on the ways to one place.
type state struct {
	effect string // a side effect, "" for none: a fail point
	fresh  bool   // perhaps nothing, since the function began
}

// gap is a place where two side effects follow each other, or a room is left right behind one, without a fail point.
type gap struct{ function, text string }

// check finds the gaps of the room. The functions are walked until no more is learnt of them.
func (r *room) check() []gap {
	r.known, r.spare, r.loose = map[*types.Func]summary{}, map[string]bool{}, r.looseFuncs()
	for learnt := true; learnt; {
		before := maps.Clone(r.known)
		r.gaps = nil
		for f, decl := range r.decls {
			r.walk(f, decl)
		}
		learnt = !maps.Equal(before, r.known)
	}
	return r.gaps
}

// looseFuncs finds the functions, and which are exported or used as values.
func (r *room) looseFuncs() map[*types.Func]bool {
	loose, called := map[*types.Func]bool{}, map[*ast.Ident]bool{}
	r.decls = map[*types.Func]*ast.FuncDecl{}
	for _, file := range r.files {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				called[calleeName(n)] = true
			case *ast.FuncDecl:
				r.decls[r.info.Defs[n.Name].(*types.Func)] = n
			}
			return true
		})
	}
	for id, obj := range r.info.Uses {
		if f, ok := obj.(*types.Func); ok && !called[id] {
			loose[f.Origin()] = true
		}
	}
	for _, obj := range r.info.Defs {
		if f, ok := obj.(*types.Func); ok && (f.Exported() || f.Name() == "main") {
			loose[f] = true
		}
	}
	return loose
}

func calleeName(call *ast.CallExpr) *ast.Ident {
	switch fun := ast.Unparen(call.Fun).(type) {
	case *ast.Ident:
		return fun
	case *ast.SelectorExpr:
		return fun.Sel
	case *ast.IndexExpr: // of a generic function
		if id, ok := fun.X.(*ast.Ident); ok {
			return id
		}
	}
	return nil
}

func (r *room) walk(f *types.Func, decl *ast.FuncDecl) {
	name := decl.Name.Name
	if recv := f.Signature().Recv(); recv != nil {
		of := recv.Type()
		if p, ok := of.(*types.Pointer); ok {
			of = p.Elem()
		}
		name = of.(*types.Named).Obj().Name() + "." + name
	}
	w := &walker{room: r, key: filepath.Join(r.dir, filepath.Base(r.fset.Position(decl.Pos()).Filename)) + ":" + name}
	left := w.body(decl.Body, state{fresh: true})
	now := summary{first: w.first, last: left.effect, idle: left.fresh}
	if unpointed[w.key] != "" {
		r.spare[w.key] = now.first+now.last != ""
		now, left = summary{idle: true}, state{}
	}
	if before := r.known[f]; before != (summary{}) { // what is told of more than one stays what was told first
		now = summary{cmp.Or(before.first, now.first), cmp.Or(before.last, now.last), before.idle || now.idle}
	}
	r.known[f] = now
	if left.effect != "" && r.loose[f] {
		w.found(decl.End(), "nothing is hit behind %s, the last that it does", left.effect)
	}
}

// walker follows the ways through one function, function literals included.
type walker struct {
	*room
	key   string
	first string     // see summary
	ends  []state    // those at the returns of the innermost function
	last  []ast.Expr // its deferred calls
	leaps state      // where the innermost loop is left or begun anew
}

func (w *walker) found(at token.Pos, format string, args ...any) {
	g := gap{w.key, fmt.Sprintf("line %d: ", w.fset.Position(at).Line) + fmt.Sprintf(format, args...)}
	if !slices.Contains(w.gaps, g) {
		w.gaps = append(w.gaps, g)
	}
}

// either is the state behind one of several ways.
func either(ways ...state) state {
	var all state
	for _, s := range ways {
		all = state{cmp.Or(all.effect, s.effect), all.fresh || s.fresh}
	}
	return all
}

// body follows a function's body to all of its ends.
func (w *walker) body(b *ast.BlockStmt, in state) state {
	ends, last := w.ends, w.last
	w.ends, w.last = nil, nil
	out, falls := w.block(b.List, in)
	if falls {
		w.ends = append(w.ends, w.deferred(out))
	}
	out = either(w.ends...)
	w.ends, w.last = ends, last
	return out
}

func (w *walker) deferred(in state) state {
	for _, call := range slices.Backward(w.last) {
		in = w.expr(call, in)
	}
	return in
}

// block follows statements; falls is false when none of them is left at its end.
func (w *walker) block(list []ast.Stmt, in state) (out state, falls bool) {
	for _, s := range list {
		if in, falls = w.stmt(s, in); !falls {
			return state{}, false
		}
	}
	return in, true
}

func (w *walker) stmt(s ast.Stmt, in state) (out state, falls bool) {
	switch s := s.(type) {
	case *ast.BlockStmt:
		return w.block(s.List, in)
	case *ast.LabeledStmt:
		return w.stmt(s.Stmt, in)
	case *ast.IfStmt:
		return w.branch(s, in)
	case *ast.ForStmt:
		out = w.loop(func(in state) state {
			if s.Cond != nil {
				in = w.expr(s.Cond, in)
			}
			out, _ := w.block(s.Body.List, in)
			return w.simple(s.Post, out)
		}, w.simple(s.Init, in))
		if w.succeeds(s.Cond) {
			out = state{} // it turned until the last had failed
		}
		return out, true
	case *ast.RangeStmt:
		in = w.expr(s.X, in)
		return w.loop(func(in state) state { out, _ := w.block(s.Body.List, in); return out }, in), true
	case *ast.SwitchStmt:
		in = w.simple(s.Init, in)
		if s.Tag != nil {
			in = w.expr(s.Tag, in)
		}
		return w.cases(s.Body, in)
	case *ast.TypeSwitchStmt:
		return w.cases(s.Body, w.simple(s.Assign, w.simple(s.Init, in)))
	case *ast.SelectStmt:
		return w.cases(s.Body, in)
	case *ast.ReturnStmt:
		for _, x := range s.Results {
			in = w.expr(x, in)
		}
		w.ends = append(w.ends, w.deferred(in))
		return state{}, false
	case *ast.BranchStmt:
		w.leaps = either(w.leaps, in)
		return state{}, false
	case *ast.DeferStmt:
		w.last = append(w.last, s.Call)
		return in, true
	case *ast.GoStmt:
		if left := w.expr(s.Call, state{}).effect; left != "" {
			w.found(s.End(), "nothing is hit behind %s, the last that the goroutine does", left)
		}
		return in, true
	}
	return w.simple(s, in), true
}

// simple follows a statement without statements in it, or none.
func (w *walker) simple(s ast.Stmt, in state) state {
	if s == nil {
		return in
	}
	return w.expr(s, in)
}

// branch follows both ways. On the one that a failure takes nothing was done by what has failed, and what is done there
// undoes: no test of a crash comes to it, and nothing is lost by a crash there that the next start does not undo as well.
func (w *walker) branch(s *ast.IfStmt, in state) (out state, falls bool) {
	in = w.expr(s.Cond, w.simple(s.Init, in))
	then, thenFalls := state{}, true
	if !w.fails(s.Cond) {
		then, thenFalls = w.block(s.Body.List, in)
	} else {
		thenFalls = false
	}
	otherwise, falls := in, true
	if w.succeeds(s.Cond) {
		otherwise = state{}
	}
	if s.Else != nil {
		otherwise, falls = w.stmt(s.Else, otherwise)
	}
	switch {
	case thenFalls && falls:
		return either(then, otherwise), true
	case thenFalls:
		return then, true
	}
	return otherwise, falls
}

// loop follows a body as often as it takes until one turn meets what the turn before has left.
func (w *walker) loop(turn func(in state) state, in state) state {
	leaps := w.leaps
	w.leaps = state{}
	for range 2 {
		in = either(in, turn(in), w.leaps)
	}
	w.leaps = leaps
	return in
}

func (w *walker) cases(body *ast.BlockStmt, in state) (out state, falls bool) {
	whole := false
	for _, c := range body.List {
		var list []ast.Stmt
		switch c := c.(type) {
		case *ast.CaseClause:
			list, whole = c.Body, whole || c.List == nil
			if slices.ContainsFunc(c.List, w.fails) {
				continue
			}
		case *ast.CommClause:
			list, whole = c.Body, true
		}
		if state, ok := w.block(list, in); ok {
			out, falls = either(out, state), true
		}
	}
	if !whole {
		return either(out, in), true
	}
	return out, falls
}

// fails tells of a condition that it is one of failure: err != nil, errors.Is(err, ...), and more that narrows it.
func (w *walker) fails(cond ast.Expr) bool {
	switch c := ast.Unparen(cond).(type) {
	case *ast.BinaryExpr:
		switch c.Op {
		case token.LAND:
			return w.fails(c.X) || w.fails(c.Y)
		case token.LOR:
			return w.fails(c.X) && w.fails(c.Y)
		}
		return c.Op == token.NEQ && w.isError(c.X)
	case *ast.CallExpr:
		f, ok := w.info.Uses[calleeName(c)].(*types.Func)
		return ok && (f.FullName() == "errors.Is" || f.FullName() == "errors.As")
	}
	return false
}

// succeeds tells of a condition that without it there was a failure.
func (w *walker) succeeds(cond ast.Expr) bool {
	switch c := ast.Unparen(cond).(type) {
	case *ast.UnaryExpr:
		return c.Op == token.NOT && w.fails(c.X)
	case *ast.BinaryExpr:
		return c.Op == token.EQL && w.isError(c.X)
	}
	return false
}

func (w *walker) isError(x ast.Expr) bool {
	return types.Identical(w.info.TypeOf(x), types.Universe.Lookup("error").Type())
}

// expr follows the calls in a node, the arguments of each first. A function literal is taken to be called where it stands.
func (w *walker) expr(n ast.Node, in state) state {
	ast.Inspect(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			in = either(w.body(n.Body, in), in)
			return false
		case *ast.CallExpr:
			in = w.expr(n.Fun, in)
			for _, arg := range n.Args {
				in = w.expr(arg, in)
			}
			in = w.call(n, in)
			return false
		}
		return true
	})
	return in
}

// call is the state behind one call, whose arguments are known.
func (w *walker) call(call *ast.CallExpr, in state) state {
	f, ok := w.info.Uses[calleeName(call)].(*types.Func)
	if !ok {
		return in
	}
	f = f.Origin()
	name := strings.NewReplacer("golang.org/x/sys/", "", "(", "", "*", "", ")", "").Replace(f.FullName())
	does, known := w.known[f]
	switch {
	case f.FullName() == module+"/internal/failpoint.Hit":
		return state{}
	case isEffect(f) || w.makesFile(f, call):
		does = summary{first: name, last: name}
	case w.decls[f] == nil: // it is another room's
		return in
	case !known: // it has not been walked yet: what is behind it is not reached before it was
		return state{}
	}
	if does.first != "" && in.effect != "" {
		w.found(call.Pos(), "nothing is hit between %s and %s in %s", in.effect, does.first, f.Name())
	}
	if in.fresh {
		w.first = cmp.Or(w.first, does.first)
	}
	out := state{effect: does.last}
	if does.idle {
		out = either(out, in)
	}
	return out
}

// makesFile tells of a call that opens a file which it makes or empties.
func (w *walker) makesFile(f *types.Func, call *ast.CallExpr) bool {
	at := slices.Index([]string{"os.OpenFile", "golang.org/x/sys/unix.Open", "", "golang.org/x/sys/unix.Openat"}, f.FullName())
	if at < 0 {
		return false
	}
	flag := w.info.Types[call.Args[at/3+1]].Value
	if flag == nil {
		return true // it may
	}
	value, exact := constant.Int64Val(constant.ToInt(flag))
	return !exact || value&int64(os.O_CREATE|os.O_TRUNC) != 0
}
