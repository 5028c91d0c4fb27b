package result

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// Print writes every series as a line of a table.
func Print(w io.Writer, r *Results) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "WHAT\tSUBJECT\tN\tP50\tP90\tP99\tUNIT\tTO THE FLOOR")
	for _, s := range r.Series {
		ratio := ""
		if s.Subject != Floor && r.Has(s.What, Floor) {
			ratio = fmt.Sprintf("%.2f", r.Ratio(s.What, s.Subject, Floor))
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%.3f\t%.3f\t%.3f\t%s\t%s\n", s.What, s.Subject, s.N, s.Quantiles[50], s.Quantiles[90], s.Quantiles[99], s.Unit, ratio)
	}
	return t.Flush()
}
