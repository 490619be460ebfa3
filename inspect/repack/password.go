package repack

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"log/slog"
	"strings"
)

// Password says how the archive with what was removed is protected: not at all, by one word for every message, or by a
// word for each message that is derived from a secret and the message's id. The zero value is None.
type Password struct {
	form string // "", "Plain", "HMAC"
	word string
}

// errPassword does not repeat what was written: it may be a secret with a typing error around it.
var errPassword = errors.New("want None, Plain(password) or HMAC(secret)")

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Password) UnmarshalText(b []byte) error {
	s := strings.TrimSpace(string(b))
	if s == "" || strings.EqualFold(s, "None") {
		*p = Password{}
		return nil
	}
	form, word, ok := strings.Cut(s, "(")
	word, closed := strings.CutSuffix(word, ")")
	if !ok || !closed {
		return errPassword
	}
	switch {
	case strings.EqualFold(form, "Plain"):
		form = "Plain"
	case strings.EqualFold(form, "HMAC"):
		form = "HMAC"
	default:
		return errPassword
	}
	switch {
	case word == "":
		return errors.New(form + "() is empty: put the " + map[string]string{"Plain": "password", "HMAC": "secret"}[form] + " between the parentheses, or write None")
	case len(word) > 200:
		return errors.New(form + "(…) is longer than 200 octets")
	case strings.IndexFunc(word, func(r rune) bool { return r < ' ' || r == 0x7f }) >= 0:
		return errors.New(form + "(…) holds a control character")
	}
	*p = Password{form, word}
	return nil
}

// MarshalText implements encoding.TextMarshaler: the setting as it was written. It is for the configuration only; see
// String.
func (p Password) MarshalText() ([]byte, error) {
	if p.form == "" {
		return []byte("None"), nil
	}
	return []byte(p.form + "(" + p.word + ")"), nil
}

// String hides the secret.
func (p Password) String() string {
	if p.form == "" {
		return "None"
	}
	return p.form + "(…)"
}

// GoString hides the secret from %#v.
func (p Password) GoString() string { return p.String() }

// LogValue hides the secret from log handlers, which would use MarshalText.
func (p Password) LogValue() slog.Value { return slog.StringValue(p.String()) }

// For returns the password of the archive of the message with that id; empty means none.
func (p Password) For(id string) string {
	switch p.form {
	case "Plain":
		return p.word
	case "HMAC":
		mac := hmac.New(sha256.New, []byte(p.word))
		mac.Write([]byte(id))
		return strings.ToLower(base32.StdEncoding.EncodeToString(mac.Sum(nil)[:10]))
	}
	return ""
}

// hint tells the reader of a notice how to come by the password.
func (p Password) hint(id string) string {
	switch p.form {
	case "Plain":
		return "It is protected by a password, which your administrator knows."
	case "HMAC":
		return "It is protected by a password, which your administrator can work out\nfrom this id: " + id
	}
	return "It is not protected by a password."
}
