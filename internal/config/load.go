package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// origin is where an option was last set: the key as written in TOML to "file:line".
type origin map[string]string

// Load reads the file path and then, in the order of their names, the drop-ins path + ".d/*.toml". A later
// value replaces an earlier one, lists as a whole. A path that does not exist is an error only if required.
// The error lists every fault found, one on a line, each with file, line and what is allowed.
func Load(path string, required bool) (Config, error) {
	cfg := Default()
	files, err := sources(path, required)
	if err != nil {
		return Config{}, err
	}
	from := origin{}
	var faults []error
	for _, file := range files {
		faults = append(faults, read(file, &cfg, from)...)
	}
	if len(faults) > 0 {
		return Config{}, errors.Join(faults...)
	}
	return cfg, errors.Join(cfg.check(from)...)
}

// sources lists the files that exist, in the order in which they count.
func sources(path string, required bool) ([]string, error) {
	var files []string
	_, err := os.Stat(path)
	switch {
	case err == nil:
		files = append(files, path)
	case required || !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	dropins, err := filepath.Glob(filepath.Join(path+".d", "*.toml"))
	if err != nil {
		return nil, fmt.Errorf("list drop-ins of %s: %w", path, err)
	}
	slices.Sort(dropins)
	return append(files, dropins...), nil
}

// decoder is one file on its way into a Config.
type decoder struct {
	file   string
	meta   toml.MetaData
	from   origin
	faults []error
}

func read(file string, cfg *Config, from origin) []error {
	top := map[string]toml.Primitive{}
	meta, err := toml.DecodeFile(file, &top)
	var syntax toml.ParseError
	switch {
	case errors.As(err, &syntax):
		return []error{fmt.Errorf("%s:%d: %s", file, syntax.Position.Line, syntax.Message)}
	case err != nil:
		return []error{fmt.Errorf("read %s: %w", file, err)}
	}
	d := &decoder{file: file, meta: meta, from: from}
	d.table("", top, reflect.ValueOf(cfg).Elem())
	return d.faults
}

// table puts the keys of one TOML table into the struct dst; prefix is the table's name with a dot, or "".
func (d *decoder) table(prefix string, keys map[string]toml.Primitive, dst reflect.Value) {
	known := fields(dst)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		name, value := prefix+key, keys[key]
		field, ok := known[key]
		if !ok {
			d.fault(value, "unknown option %s%s", name, suggest(key, slices.Sorted(maps.Keys(known))))
			continue
		}
		d.from[name] = fmt.Sprintf("%s:%d", d.file, d.line(value))
		switch field.Kind() {
		case reflect.Struct:
			d.table(name+".", d.subtable(name, value), field)
		case reflect.Map:
			d.named(name, value, field)
		default:
			if err := d.meta.PrimitiveDecode(value, field.Addr().Interface()); err != nil {
				d.fault(value, "%s must be %s", name, kindName(field))
			}
		}
	}
}

// named puts the tables [name.X] into the map of structs dst; one that is there already is amended. The map
// is replaced, never edited: it may be shared with an earlier Config.
func (d *decoder) named(name string, value toml.Primitive, dst reflect.Value) {
	merged := reflect.MakeMap(dst.Type())
	for iter := dst.MapRange(); iter.Next(); {
		merged.SetMapIndex(iter.Key(), iter.Value())
	}
	for key, sub := range d.subtable(name, value) {
		element := reflect.New(dst.Type().Elem()).Elem()
		if old := merged.MapIndex(reflect.ValueOf(key)); old.IsValid() {
			element.Set(old)
		}
		full := name + "." + key
		d.from[full] = fmt.Sprintf("%s:%d", d.file, d.line(sub))
		d.table(full+".", d.subtable(full, sub), element)
		merged.SetMapIndex(reflect.ValueOf(key), element)
	}
	dst.Set(merged)
}

func (d *decoder) subtable(name string, value toml.Primitive) map[string]toml.Primitive {
	var shape any
	sub := map[string]toml.Primitive{}
	err := errors.Join(d.meta.PrimitiveDecode(value, &shape), d.meta.PrimitiveDecode(value, &sub))
	if _, ok := shape.(map[string]any); !ok || err != nil {
		d.fault(value, "%s must be a table: [%s]", name, name)
	}
	return sub
}

func (d *decoder) fault(at toml.Primitive, format string, args ...any) {
	d.faults = append(d.faults, fmt.Errorf("%s:%d: "+format, append([]any{d.file, d.line(at)}, args...)...))
}

// here refuses every value: the library names a line only in errors.
type here struct{}

func (*here) UnmarshalTOML(any) error { return errors.New("here") }

func (d *decoder) line(value toml.Primitive) int {
	var position toml.ParseError
	errors.As(d.meta.PrimitiveDecode(value, &here{}), &position)
	return position.Position.Line
}

// fields maps the TOML names of a struct's fields to them, those of embedded structs included.
func fields(v reflect.Value) map[string]reflect.Value {
	named := map[string]reflect.Value{}
	for i := range v.NumField() {
		if v.Type().Field(i).Anonymous {
			maps.Copy(named, fields(v.Field(i)))
			continue
		}
		named[v.Type().Field(i).Tag.Get("toml")] = v.Field(i)
	}
	return named
}

func kindName(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Slice:
		return `a list of strings: ["..."]`
	case reflect.Int:
		return "a whole number"
	}
	return `a string: "..."`
}

// suggest ends a message about an unknown key with the likely one, or with all that are allowed.
func suggest(key string, known []string) string {
	best, least := "", 3 // more than two slips is another word
	for _, k := range known {
		if n := distance(key, k); n < least {
			best, least = k, n
		}
	}
	if best != "" {
		return fmt.Sprintf(" (did you mean %s?)", best)
	}
	return "; allowed here: " + strings.Join(known, ", ")
}

// distance is the number of single-byte insertions, deletions and replacements between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := corner
			if a[i] != b[j] {
				replace++
			}
			corner = row[j+1]
			row[j+1] = min(replace, row[j]+1, corner+1)
		}
	}
	return row[len(b)]
}
