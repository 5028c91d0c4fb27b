package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/pflag"
)

// AddOutput defines --output, whose value is "table" or "json".
func AddOutput(f *pflag.FlagSet, format *string) {
	*format = "table"
	f.VarP(Choice(format, "table", "json"), "output", "o", "form of the output: table or json")
}

// PrintJSON writes v as indented JSON.
func PrintJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// Table writes rows in columns.
func Table(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	return t.Flush()
}

// Mebibytes writes a size in bytes as a table has it.
func Mebibytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/(1<<20)) }

// Printable keeps text that a stranger chose from steering the terminal.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f {
			return '?'
		}
		return r
	}, s)
}

// YesNo writes a truth value as a table has it.
func YesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
