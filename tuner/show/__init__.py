"""Results for people: tables, pictures, one HTML file, progress. Decides nothing."""
