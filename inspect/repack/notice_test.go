package repack

import (
	"slices"
	"testing"

	"mailweir/inspect"
	"mailweir/inspect/mimetree"
)

// A reader of the notice is told objects apart: the archive, and the file in it.
func TestM104ObjectsOfANotice(t *testing.T) {
	virus := func(path, engine string) inspect.Finding {
		return inspect.Finding{Kind: inspect.Threat, Name: "EICAR", Category: inspect.KnownVirus, Path: path, Engine: engine}
	}
	zip := &mimetree.Part{Path: "2", Name: "eicar.zip"}
	for _, c := range []struct {
		name string
		bad  []BadPart
		want []string
	}{
		{"an archive and the file in it", []BadPart{{Part: zip, Findings: []inspect.Finding{
			virus("2/eicar.zip", "builtin"), virus("2/eicar.zip/eicar.com", "builtin"),
			virus("2/eicar.zip", "clamd"), virus("2/eicar.zip/eicar.com", "clamd")}}}, []string{"eicar.zip", "eicar.zip/eicar.com"}},
		{"the whole message", []BadPart{{Part: &mimetree.Part{}, Findings: []inspect.Finding{
			virus("", "builtin"), virus("2.1/a.exe", "builtin"), virus("2.1", "builtin")}}}, []string{"", "a.exe", "2.1"}},
		{"no path, or a number alone", []BadPart{{Part: zip, Findings: []inspect.Finding{virus("", ""), virus("2", "")}}}, []string{"eicar.zip"}},
		{"another reading, an attached message", []BadPart{{Part: nil, Findings: []inspect.Finding{
			virus("view1/2/a.exe", ""), virus("3/mail.eml/1/a.exe", "")}}}, []string{"view1/2/a.exe", "mail.eml/1/a.exe"}},
		{"parts of the same name", []BadPart{{Part: zip, Findings: []inspect.Finding{virus("2/eicar.zip", "")}},
			{Part: &mimetree.Part{Path: "3", Name: "b"}, Findings: []inspect.Finding{virus("3/b", "")}}}, []string{"eicar.zip", "b"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			list, _ := threats(c.bad)
			for _, x := range list {
				got = append(got, x.Object)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
