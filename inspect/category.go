package inspect

import "strings"

// CategoryOf guesses the threat category from a virus name written in the customs of ClamAV and its neighbours
// ("Win.Adware.Foo-1", "PUA.Win.Tool.Bar"): those names are the only thing such engines tell. What is not recognised
// is a KnownVirus, the category that is blocked unless somebody says otherwise.
func CategoryOf(name string) string {
	words := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool { return r == '.' || r == '-' || r == '/' || r == ':' || r == '_' })
	for _, w := range words {
		switch w {
		case "adware":
			return Adware
		case "dialer", "porndialer":
			return Dialer
		case "joke", "hoax":
			return Joke
		case "hacktool", "hktl":
			return Hacktool
		case "riskware", "pua", "pup", "unwanted":
			return Riskware
		case "heuristics", "heuristic", "suspicious", "generickd":
			return UnknownVirus
		}
	}
	return KnownVirus
}
