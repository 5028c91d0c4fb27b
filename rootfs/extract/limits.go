package extract

// Limits bound a code package. A zero field means the default.
type Limits struct {
	ZipBytes      int64 // of the zip file itself; default 250 MiB, so that a local file may be stored uncompressed
	UnzippedBytes int64 // code and layers together (ENV-36); default 250 MiB
	Entries       int   // files, directories and links of one zip; default 100,000
	Depth         int   // path components of an entry; default 100
	Layers        int   // ENV-36; default 5
}

// WithDefaults is l with the defaults in place of zero fields.
func (l Limits) WithDefaults() Limits {
	set := func(v *int64, def int64) {
		if *v <= 0 {
			*v = def
		}
	}
	count := func(v *int, def int) {
		if *v <= 0 {
			*v = def
		}
	}
	set(&l.ZipBytes, 250<<20)
	set(&l.UnzippedBytes, 250<<20)
	count(&l.Entries, 100_000)
	count(&l.Depth, 100)
	count(&l.Layers, 5)
	return l
}
