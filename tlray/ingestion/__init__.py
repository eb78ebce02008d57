"""From labelled pictures in any layout to a data set of Arrow or Parquet files."""
