package config

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"
)

var (
	durationType    = reflect.TypeFor[time.Duration]()
	unmarshalerType = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// isText says whether values of the type read themselves.
func isText(t reflect.Type) bool {
	return t.Implements(unmarshalerType) || reflect.PointerTo(t).Implements(unmarshalerType)
}

// parse reads the words of one parameter into its field. A parameter that is no list takes exactly one word.
func (p *Param) parse(words []string, dst reflect.Value) error {
	if !p.List {
		if len(words) != 1 {
			return fmt.Errorf("one value is expected, not %d", len(words))
		}
		return p.parseOne(words[0], dst)
	}
	list := reflect.MakeSlice(dst.Type(), 0, len(words))
	for _, w := range words {
		if w == "" {
			continue // an empty list
		}
		v := reflect.New(dst.Type().Elem()).Elem()
		if err := p.parseOne(w, v); err != nil {
			return err
		}
		list = reflect.Append(list, v)
	}
	if list.Len() == 0 {
		list = reflect.Zero(dst.Type())
	}
	dst.Set(list)
	return nil
}

func (p *Param) parseOne(word string, dst reflect.Value) error {
	if p.None && strings.EqualFold(word, "None") && !isText(dst.Type()) {
		dst.SetZero()
		return nil
	}
	if isText(dst.Type()) {
		return dst.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(word))
	}
	if dst.Type() == durationType {
		d, err := parseDuration(word)
		if err != nil {
			return err
		}
		dst.SetInt(int64(d))
		return p.bounds(word, int64(d), func(s string) (int64, error) { d, err := parseDuration(s); return int64(d), err })
	}
	switch dst.Kind() {
	case reflect.Bool:
		b, err := parseBool(word, p.onOff)
		dst.SetBool(b)
		return err
	case reflect.String:
		s, err := p.parseString(word)
		dst.SetString(s)
		return err
	case reflect.Int, reflect.Int32, reflect.Int64:
		n, err := p.parseNumber(word)
		if err != nil {
			return err
		}
		if dst.OverflowInt(n) {
			return fmt.Errorf("%q is too large", word)
		}
		dst.SetInt(n)
		return p.bounds(word, n, p.parseNumber)
	case reflect.Uint, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := p.parseNumber(word)
		if err != nil {
			return err
		}
		if n < 0 || dst.OverflowUint(uint64(n)) {
			return fmt.Errorf("%q is out of range", word)
		}
		dst.SetUint(uint64(n))
		return p.bounds(word, n, p.parseNumber)
	}
	panic("config: " + p.Name() + " is of a type that has no text form: " + dst.Type().String())
}

// bounds holds a number against min and max of its parameter.
func (p *Param) bounds(word string, n int64, read func(string) (int64, error)) error {
	if p.Min != "" {
		if least, err := read(p.Min); err != nil {
			panic("config: min of " + p.Name() + ": " + err.Error())
		} else if n < least {
			return fmt.Errorf("%q is too small; the least is %s", word, p.Min)
		}
	}
	if p.Max != "" {
		if most, err := read(p.Max); err != nil {
			panic("config: max of " + p.Name() + ": " + err.Error())
		} else if n > most {
			return fmt.Errorf("%q is too large; the most is %s", word, p.Max)
		}
	}
	return nil
}

func parseBool(word string, onOff bool) (bool, error) {
	switch strings.ToLower(word) {
	case "yes", "true", "on", "1":
		return true, nil
	case "no", "false", "off", "0":
		return false, nil
	}
	if onOff {
		return false, fmt.Errorf("%q is neither On nor Off", word)
	}
	return false, fmt.Errorf("%q is neither Yes nor No", word)
}

func (p *Param) parseString(word string) (string, error) {
	if len(p.Enum) > 0 {
		for _, e := range p.Enum {
			if strings.EqualFold(e, word) {
				return e, nil
			}
		}
		hint := ""
		if e := nearest(word, p.Enum); e != "" {
			hint = "; did you mean " + e + "?"
		}
		return "", fmt.Errorf("%q is not one of %s%s", word, strings.Join(p.Enum, ", "), hint)
	}
	switch p.format {
	case "path", "file", "directory":
		if word == "" && p.Default == "" {
			return "", nil
		}
		if !filepath.IsAbs(word) {
			return "", fmt.Errorf("%q is not an absolute path; it must begin with /", word)
		}
		return filepath.Clean(word), nil
	}
	return word, nil
}

func (p *Param) parseNumber(word string) (int64, error) {
	switch p.format {
	case "size":
		return parseSize(word)
	case "mark":
		if strings.EqualFold(word, "Auto") {
			return 0, nil
		}
		n, err := strconv.ParseUint(word, 0, 32)
		if err != nil || n == 0 {
			return 0, fmt.Errorf("%q is not a mark; write Auto or a number from 1 to 0xffffffff", word)
		}
		return int64(n), nil
	}
	n, err := strconv.ParseInt(word, 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		return 0, fmt.Errorf("%q is too large", word)
	}
	if err != nil {
		return 0, fmt.Errorf("%q is not a whole number", word)
	}
	return n, nil
}

// parseSize reads a number with one of the units b, kb, mb, gb, which are powers of 1024.
func parseSize(word string) (int64, error) {
	lower := strings.ToLower(strings.ReplaceAll(word, " ", ""))
	digits := strings.TrimRight(lower, "bkmg")
	shift := 0
	switch lower[len(digits):] {
	case "b":
	case "kb":
		shift = 10
	case "mb":
		shift = 20
	case "gb":
		shift = 30
	case "":
		if _, err := strconv.ParseUint(lower, 10, 63); err == nil {
			return 0, fmt.Errorf("%q has no unit; write %sb, %skb, %smb or %sgb", word, lower, lower, lower, lower)
		}
		fallthrough
	default:
		return 0, fmt.Errorf("%q is not a size; write a number and b, kb, mb or gb, as in 10mb", word)
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if errors.Is(err, strconv.ErrRange) || err == nil && n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is too large", word)
	}
	if err != nil {
		return 0, fmt.Errorf("%q is not a size; write a number and b, kb, mb or gb, as in 10mb", word)
	}
	return int64(n) << shift, nil
}

func formatSize(n int64) string {
	for _, u := range []struct {
		shift int
		name  string
	}{{30, "gb"}, {20, "mb"}, {10, "kb"}} {
		if n != 0 && n%(1<<u.shift) == 0 {
			return strconv.FormatInt(n>>u.shift, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10) + "b"
}

// parseDuration reads numbers with units: 10s, 3m, 1h20m, 30d, 500ms.
func parseDuration(word string) (time.Duration, error) {
	bad := fmt.Errorf("%q is not a time; write numbers with units, as in 10s, 3m, 1h20m, 30d", word)
	rest := strings.ToLower(strings.ReplaceAll(word, " ", ""))
	if rest == "" {
		return 0, bad
	}
	var total time.Duration
	for rest != "" {
		i := 0
		for i < len(rest) && rest[i] >= '0' && rest[i] <= '9' {
			i++
		}
		if i == 0 {
			return 0, bad
		}
		n, err := strconv.ParseInt(rest[:i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%q is too long", word)
		}
		digits := rest[:i]
		rest = rest[i:]
		i = 0
		for i < len(rest) && (rest[i] < '0' || rest[i] > '9') {
			i++
		}
		var unit time.Duration
		switch rest[:i] {
		case "ms":
			unit = time.Millisecond
		case "s", "sec":
			unit = time.Second
		case "m", "min":
			unit = time.Minute
		case "h":
			unit = time.Hour
		case "d":
			unit = 24 * time.Hour
		case "":
			return 0, fmt.Errorf("%q has no unit; write %ss, %sm, %sh or %sd", word, digits, digits, digits, digits)
		default:
			return 0, bad
		}
		if n > int64((math.MaxInt64-total)/unit) {
			return 0, fmt.Errorf("%q is too long", word)
		}
		total += time.Duration(n) * unit
		rest = rest[i:]
	}
	return total, nil
}

func formatDuration(d time.Duration) string {
	if d == 0 {
		return "0s"
	}
	var b strings.Builder
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}, {time.Millisecond, "ms"}} {
		if n := d / u.unit; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			d -= n * u.unit
		}
	}
	return b.String()
}

// show returns the value of a field as an administrator would write it.
func (p *Param) show(v reflect.Value) string {
	if !p.List {
		return p.showOne(v)
	}
	words := make([]string, v.Len())
	for i := range words {
		words[i] = quoteMember(p.showOne(v.Index(i)))
	}
	return strings.Join(words, ", ")
}

func (p *Param) showOne(v reflect.Value) string {
	if isText(v.Type()) {
		return showText(v)
	}
	if p.None && v.IsZero() && v.Kind() != reflect.Bool {
		return "None"
	}
	if v.Type() == durationType {
		return formatDuration(time.Duration(v.Int()))
	}
	switch v.Kind() {
	case reflect.Bool:
		words := [2]string{"No", "Yes"}
		if p.onOff {
			words = [2]string{"Off", "On"}
		}
		if v.Bool() {
			return words[1]
		}
		return words[0]
	case reflect.String:
		return v.String()
	}
	var n int64
	if v.CanUint() {
		n = int64(v.Uint())
	} else {
		n = v.Int()
	}
	switch p.format {
	case "size":
		return formatSize(n)
	case "mark":
		if n == 0 {
			return "Auto"
		}
		return fmt.Sprintf("%#x", n)
	}
	return strconv.FormatInt(n, 10)
}

// showText asks a value that reads itself to write itself.
func showText(v reflect.Value) string {
	i := v.Interface()
	if v.CanAddr() {
		i = v.Addr().Interface()
	}
	if m, ok := i.(encoding.TextMarshaler); ok {
		if text, err := m.MarshalText(); err == nil {
			return string(text)
		}
	}
	return fmt.Sprint(i)
}
