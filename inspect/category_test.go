package inspect

import "testing"

func TestCategoryOf(t *testing.T) {
	for name, want := range map[string]string{
		"Win.Trojan.Agent-1":         KnownVirus,
		"Eicar-Test-Signature":       KnownVirus,
		"PUA.Win.Tool.Packed-9":      Riskware,
		"Win.Adware.Gator-3":         Adware,
		"Heuristics.Phishing.Email":  UnknownVirus,
		"Html.Joke.Scroll-1":         Joke,
		"Win.Dialer.X":               Dialer,
		"Unix.HackTool.Netcat":       Hacktool,
		"":                           KnownVirus,
		"Win.Trojan.NotAdwareReally": KnownVirus,
	} {
		if got := CategoryOf(name); got != want {
			t.Errorf("CategoryOf(%q) = %q, want %q", name, got, want)
		}
	}
}
